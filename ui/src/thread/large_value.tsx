/** A value that is read when that is asked for. */
import type { CheckpointTuple, Decoded, OmittedValue } from "checkpointd/client";
import { useState } from "preact/hooks";
import { toFailure } from "../service.js";
import { Value } from "../values/value.js";
import { toSize } from "../words.js";
import { readOmitted } from "./tuples.js";

export function LargeValue(props: { tuple: CheckpointTuple; omitted: OmittedValue }) {
  const { tuple, omitted } = props;
  const [value, setValue] = useState<Decoded>();
  const [problem, setProblem] = useState<string>();
  const [isReading, setReading] = useState(false);
  if (value) return <Value value={value} />;
  return (
    <p>
      <span class="kind">{omitted.type}</span>{" "}
      <button
        type="button"
        disabled={isReading}
        onClick={async () => {
          setReading(true);
          try {
            setValue((await readOmitted(tuple, omitted)) ?? { kind: "none" });
          } catch (error) {
            setProblem(toFailure(error)?.text);
          }
          setReading(false);
        }}
      >
        {isReading ? "Reading…" : `Read all ${toSize(omitted.bytes)}`}
      </button>{" "}
      {problem !== undefined && <span role="alert">{problem}</span>}
    </p>
  );
}
