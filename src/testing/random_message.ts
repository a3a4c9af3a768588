/** Messages with every field that a descriptor has, now or later, set to random values. */
import { create, type DescField, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";

type Random = (below: number) => number;

/**
 * A message of which each field is set three times in four, of a oneof one, so that in a few of
 * them each field was set and left out. Texts hold what UTF-8 makes of several lengths and a NUL,
 * numbers their extremes.
 */
export function randomMessage(schema: DescMessage, random: Random) {
  const message = reflect(schema, create(schema));
  if (/^google\.protobuf\.(Duration|Timestamp)$/.test(schema.typeName)) {
    // Of which JSON has those only that are in range.
    message.set(schema.field.seconds as DescField, BigInt(random(2 ** 31)) as never);
    message.set(schema.field.nanos as DescField, (random(1000) * 1_000_000) as never);
    return message.message;
  }
  for (const member of schema.members) {
    const field = member.kind === "oneof" ? member.fields[random(member.fields.length)] : member;
    if (!field || random(4) === 0) continue;
    if (field.fieldKind === "list") {
      const list = message.get(field);
      for (let i = [0, 1, 2, 9][random(4)] as number; i > 0; i--) {
        list.add(randomValue(field, random) as never);
      }
    } else if (field.fieldKind === "map") {
      const map = message.get(field);
      for (let i = random(3); i > 0; i--) {
        map.set(`key ${i}` as never, randomValue(field, random) as never);
      }
    } else {
      message.set(field, randomValue(field, random) as never);
    }
  }
  return message.message;
}

const letters = ["a", "é", "漢", "😀", "\n", '"', "\u0000"];
const int32 = [0, 1, 127, 128, 2 ** 31 - 1, -1, -4, -128, -(2 ** 31)];

function randomValue(field: DescField, random: Random): unknown {
  const pick = <T>(values: readonly T[]): T => values[random(values.length)] as T;
  if (field.message) {
    return reflect(field.message, randomMessage(field.message, random) as never);
  }
  if (field.enum) return pick(field.enum.values).number;
  switch (field.scalar) {
    case ScalarType.STRING:
      return Array.from({ length: pick([1, 5, 36, 127, 128, 200]) }, () => pick(letters)).join("");
    case ScalarType.BYTES:
      return new Uint8Array(pick([1, 127, 128, 1_000])).fill(random(256));
    case ScalarType.BOOL:
      return random(2) === 1;
    case ScalarType.INT32:
      return pick(int32);
    case ScalarType.UINT32:
      return pick([0, 1, 127, 128, 2 ** 31, 2 ** 32 - 1]);
    case ScalarType.INT64:
      return BigInt(pick(int32)) * 2n ** 32n;
    default:
      throw new Error(`a kind of field this does not know: ${field}`);
  }
}
