/** What tasks wrote that no checkpoint has taken in yet: questions, errors, results. */
import { type CheckpointTuple, decodeValue, type PendingWrite } from "checkpointd/client";
import { useState } from "preact/hooks";
import { errorText, hasMoreThanText, nodeOf, questionsOf } from "../values/reasons.js";
import { Text, Value } from "../values/value.js";
import { shorten, toCount } from "../words.js";
import { LargeValue } from "./large_value.js";

/** A step of which thousands of tasks are sent has as many writes. */
const writesAtOnce = 200;

export function Tasks({ tuple }: { tuple: CheckpointTuple }) {
  const [shown, setShown] = useState(writesAtOnce);
  const { pendingWrites: writes } = tuple;
  const large = tuple.omitted.filter(({ taskId }) => taskId !== "");
  if (writes.length + large.length === 0)
    return <p class="dim">No task has written anything after this step.</p>;
  const tasks = Map.groupBy(writes.slice(0, shown), ({ taskId }) => taskId);
  return (
    <div class="tasks">
      {[...tasks].map(([taskId, ofTask]) => (
        <section class="channel" key={taskId} aria-label={`Task ${taskId}`}>
          <h3>
            <span class="name">
              {nameOf(ofTask[0]?.taskPath ?? "")} <code>{shorten(taskId, 60)}</code>
            </span>
          </h3>
          {ofTask.map((write) => (
            <Write write={write} key={write.idx} />
          ))}
        </section>
      ))}
      {writes.length > shown && (
        <button type="button" class="quiet" onClick={() => setShown(shown + writesAtOnce)}>
          {toCount(writes.length - shown, "more write")}
        </button>
      )}
      {large.slice(0, shown).map((omitted) => (
        <section
          class="channel"
          key={`${omitted.taskId} ${omitted.idx}`}
          aria-label={`Written to ${omitted.channel}`}
        >
          <h3>
            <span class="name">
              {nameOf(omitted.taskPath)} wrote to {shorten(omitted.channel, 120)}
            </span>
          </h3>
          <LargeValue tuple={tuple} omitted={omitted} />
        </section>
      ))}
    </div>
  );
}

const nameOf = (taskPath: string) => nodeOf(taskPath) || "task";

function Write({ write: { channel, value } }: { write: PendingWrite }) {
  const decoded = decodeValue(value);
  if (channel === "__error__") {
    return (
      <div class="reason error">
        <span class="kind">error</span> <Text text={errorText(decoded)} />
        {hasMoreThanText(decoded) && (
          <div>
            <Value value={decoded} isOpen={false} />
          </div>
        )}
      </div>
    );
  }
  if (channel === "__interrupt__") {
    return (
      <div class="reason question">
        <span class="kind">asks</span>
        {questionsOf(decoded).map((question, i) => (
          <Value value={question} key={i} />
        ))}
      </div>
    );
  }
  return (
    <div class="write">
      <span class="name">{channel === "__resume__" ? "was answered" : shorten(channel, 120)}</span>
      <Value value={decoded} />
    </div>
  );
}
