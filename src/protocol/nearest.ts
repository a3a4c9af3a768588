/** What somebody meant who typed a word that is not known. */

/**
 * ` Did you mean X?` where one of the known words is near what was typed, or begins with it; else
 * the sentence that stands in its place.
 *
 * @param prefix what stands before the word where it is typed, such as "--"
 */
export function didYouMean(
  typed: string,
  known: readonly string[],
  { prefix = "", otherwise = "" } = {},
): string {
  const word = typed.toLowerCase();
  const [nearest] = known
    .map((name) => ({ name, distance: editDistance(word, name.toLowerCase()) }))
    .sort((a, b) => a.distance - b.distance);
  // A third of a word may be wrong, of a short one two letters, but never all of it.
  const allowed = Math.min(Math.max(2, word.length / 3), word.length - 1);
  const longer = known.find((name) => word.length >= 3 && name.toLowerCase().startsWith(word));
  const meant = longer ?? (nearest && nearest.distance <= allowed ? nearest.name : undefined);
  return meant === undefined ? otherwise : ` Did you mean ${prefix}${meant}?`;
}

function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const current = [i];
    for (let j = 1; j <= b.length; j++) {
      current[j] = Math.min(
        (previous[j] as number) + 1,
        (current[j - 1] as number) + 1,
        (previous[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1),
      );
    }
    previous = current;
  }
  return previous[b.length] as number;
}
