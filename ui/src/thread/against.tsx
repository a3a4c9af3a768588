/** Which checkpoint the changes are told against. */
import { go, type Place } from "../place.js";
import { shorten } from "../words.js";
import type { Header } from "./history.js";

/** Chooses what the checkpoint is compared with, where there are branches. */
export function Against(props: { place: Place; checkpointId: string; ends: Header[] }) {
  const { place, checkpointId, ends } = props;
  const { against, ...rest } = place;
  if (ends.length < 2 && against === undefined) return null;
  const others = ends.filter(({ id }) => id !== checkpointId);
  const isOther = against !== undefined && others.every(({ id }) => id !== against);
  return (
    <label class="against">
      Compared with
      <select
        value={against ?? ""}
        onChange={({ currentTarget: { value } }) =>
          go(value === "" ? rest : { ...rest, against: value }, true)
        }
      >
        <option value="">the step before</option>
        {others.map(({ id, step, time }) => (
          <option key={id} value={id}>
            the end of a branch: step {step ?? "–"}, {time?.toLocaleTimeString() ?? id}
          </option>
        ))}
        {isOther && <option value={against}>{shorten(against, 60)}</option>}
      </select>
    </label>
  );
}
