/** Values that are read when that is asked for. */
import type { CheckpointTuple, OmittedValue, StoredValue } from "checkpointd/client";
import { useEffect, useRef, useState } from "preact/hooks";
import { toFailure } from "../service.js";
import { Stored } from "../values/stored.js";
import { toSize } from "../words.js";
import { readOmitted } from "./read_value.js";

/** A value that was left out, with what reads it. */
export function LargeValue(props: { tuple: CheckpointTuple; omitted: OmittedValue }) {
  const { tuple, omitted } = props;
  const { result, ...reading } = useReading((signal, onProgress) =>
    readOmitted(tuple, omitted, signal, onProgress),
  );
  if (result === undefined) {
    return (
      <p>
        <span class="kind">{omitted.type}</span>{" "}
        <ReadButton {...reading} bytes={omitted.bytes} text={`Read ${toSize(omitted.bytes)}`} />
      </p>
    );
  }
  if (result === null) return <p class="dim">It is not stored any more.</p>;
  return (
    <>
      <p>
        <span class="kind">{omitted.type}</span> {toSize(omitted.bytes)}{" "}
        <SaveButton stored={result} name={omitted.channel} />
      </p>
      <Stored stored={result} />
    </>
  );
}

/** Something that is read when that is asked for: how far it is, and what came of it. */
export interface Reading<Result> {
  /** Bytes that have come; undefined while nothing is read. */
  done: number | undefined;
  problem: string | undefined;
  /** null where there is nothing any more. */
  result: Result | null | undefined;
  begin(): void;
  cancel(): void;
}

/** Reads with `read` when `begin` is called, until `cancel` is, or until nobody looks any more. */
export function useReading<Result>(
  read: (
    signal: AbortSignal,
    onProgress: (bytes: number) => void,
  ) => Promise<Result | null | undefined>,
): Reading<Result> {
  const [state, setState] = useState<Pick<Reading<Result>, "done" | "problem" | "result">>({
    done: undefined,
    problem: undefined,
    result: undefined,
  });
  const under = useRef<AbortController | undefined>(undefined);
  useEffect(() => () => under.current?.abort(), []);
  const nothing = { done: undefined, problem: undefined, result: undefined };
  return {
    ...state,
    async begin() {
      const mine = new AbortController();
      under.current = mine;
      setState({ ...nothing, done: 0 });
      let toldAt = 0;
      // The end of the stream comes after the value.
      let isOver = false;
      try {
        const result = await read(mine.signal, (done) => {
          const now = performance.now();
          // Not with each piece: there are thousands.
          if (now - toldAt < 100 || mine.signal.aborted || isOver) return;
          toldAt = now;
          setState({ ...nothing, done });
        });
        isOver = true;
        if (!mine.signal.aborted) setState({ ...nothing, result: result ?? null });
      } catch (error) {
        isOver = true;
        if (!mine.signal.aborted) setState({ ...nothing, problem: toFailure(error)?.text });
      }
    },
    cancel() {
      under.current?.abort();
      setState(nothing);
    },
  };
}

/** What begins to read so many bytes, and then tells how far it is and ends it. */
export function ReadButton(
  props: Omit<Reading<never>, "result"> & { bytes: number; text: string },
) {
  const { done, problem, begin, cancel, bytes, text } = props;
  if (done === undefined) {
    return (
      <>
        <button type="button" onClick={begin}>
          {text}
        </button>{" "}
        {problem !== undefined && <span role="alert">{problem}</span>}
      </>
    );
  }
  return (
    <span class="reading">
      <progress value={Math.min(done, bytes)} max={bytes} aria-label="How much has been read" />{" "}
      {toSize(Math.min(done, bytes))} of {toSize(bytes)}{" "}
      <button type="button" class="quiet" onClick={cancel}>
        Cancel
      </button>
    </span>
  );
}

const endings: Record<string, string> = { json: "json", msgpack: "msgpack" };

function SaveButton({ stored, name }: { stored: StoredValue; name: string }) {
  return (
    <button
      type="button"
      class="quiet"
      onClick={() => {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([stored.data as BlobPart]));
        link.download = `${name.replace(/[^\w.-]+/g, "_")}.${endings[stored.type] ?? "bin"}`;
        link.click();
        // The browser has it by then.
        setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
      }}
    >
      Save as file
    </button>
  );
}
