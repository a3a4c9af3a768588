/** The difference of a channel whose value is large, before or after: read and compared when asked for. */
import type { OmittedValue, StoredValue } from "checkpointd/client";
import { runInSteps } from "../steps.js";
import { Stored, StoredPart, StoredPartsView, StoredText } from "../values/stored.js";
import { toCount, toSize } from "../words.js";
import { ReadButton, useReading } from "./large_value.js";
import { readOmitted } from "./read_value.js";
import { compareStored, type StoredDifference } from "./stored_difference.js";
import type { State } from "./tuples.js";

interface Compared {
  before: StoredValue | undefined;
  after: StoredValue | undefined;
  difference: StoredDifference | undefined;
}

export function LargeDifference(props: {
  channel: string;
  large: { before?: OmittedValue; after?: OmittedValue };
  before: State | undefined;
  after: State;
}) {
  const { channel, large } = props;
  const bytes = (large.before?.bytes ?? 0) + (large.after?.bytes ?? 0);
  const { result, ...reading } = useReading<Compared>(async (signal, onProgress) => {
    let read = 0;
    const readSide = async (state: State | undefined, omitted: OmittedValue | undefined) => {
      if (!state || !omitted) return state && smallValue(state, channel);
      const value = await readOmitted(state.tuple, omitted, signal, (n) => onProgress(read + n));
      read += omitted.bytes;
      return value;
    };
    const before = await readSide(props.before, large.before);
    const after = await readSide(props.after, large.after);
    const difference = before && after && (await runInSteps(compareStored(before, after), signal));
    return { before, after, difference };
  });
  if (result) return <Result {...result} />;
  return (
    <p>
      <ReadButton {...reading} bytes={bytes} text={`Read and compare ${toSize(bytes)}`} />
    </p>
  );
}

/** What the other side has, which is not large. */
function smallValue(state: State, channel: string): StoredValue | undefined {
  const blob = state.tuple.blobs.find((each) => each.channel === channel);
  if (blob?.value) return blob.value;
  const inlined = state.values.get(channel);
  if (inlined?.kind !== "json") return undefined;
  return { type: "json", data: new TextEncoder().encode(JSON.stringify(inlined.value)) };
}

function Result({ before, after, difference }: Compared) {
  if (!before || !after || !difference) {
    const only = after ?? before;
    if (!only) return <p class="dim">Neither is stored any more.</p>;
    return <Side sort={after ? "added" : "removed"} stored={only} />;
  }
  switch (difference.kind) {
    case "same":
      return <p class="dim">Written again, with the same value.</p>;
    case "list": {
      const { same, before: old, after: now } = difference;
      return (
        <>
          {same > 0 && <p class="dim">{toCount(same, "item")} as before</p>}
          {old.size > same && (
            <div class="side removed">
              <StoredPartsView parts={old} from={same} />
            </div>
          )}
          {now.size > same && (
            <div class="side added">
              <StoredPartsView parts={now} from={same} />
            </div>
          )}
        </>
      );
    }
    case "object":
      return (
        <>
          {difference.same > 0 && <p class="dim">{toCount(difference.same, "field")} as before</p>}
          <ul class="places">
            {difference.changed.slice(0, 200).map(({ key, ...sides }) => (
              <li key={key}>
                {sides.before && <Side sort="removed" stored={sides.before} name={key} />}
                {sides.after && <Side sort="added" stored={sides.after} name={key} />}
              </li>
            ))}
          </ul>
        </>
      );
    case "text": {
      const { same, isLonger } = difference;
      return (
        <>
          <p class="dim">
            {isLonger
              ? `Goes on after ${toSize(same)} as before`
              : `${toSize(same)} as before, other text from there on`}
          </p>
          {!isLonger && (
            <div class="side removed">
              <StoredText stored={before} from={same} />
            </div>
          )}
          <div class="side added">
            <StoredText stored={after} from={same} />
          </div>
        </>
      );
    }
    default:
      return (
        <>
          <p class="dim">
            {toSize(before.data.length)} before, {toSize(after.data.length)} after; the first{" "}
            {difference.same.toLocaleString("en")} bytes are the same.
          </p>
          <Side sort="removed" stored={before} />
          <Side sort="added" stored={after} />
        </>
      );
  }
}

function Side(props: { sort: "added" | "removed"; stored: StoredValue; name?: string }) {
  const { sort, stored, name } = props;
  return (
    <div class={`side ${sort}`}>
      {name === undefined ? <Stored stored={stored} /> : <StoredPart name={name} part={stored} />}
    </div>
  );
}
