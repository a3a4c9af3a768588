/** One thread of the list. */
import { timestampDate } from "@bufbuild/protobuf/wkt";
import type { Thread } from "checkpointd/client";
import { useMemo } from "preact/hooks";
import { follow, hrefOf } from "../place.js";
import { StatusMark } from "../status.js";
import { reasonsOf } from "../values/reasons.js";
import { shorten, toAge, toLocalTime, toRecord, toSpan, toStatus } from "../words.js";
import { Size } from "./size.js";

export function ThreadRow(props: { thread: Thread; now: number; hasSize: boolean }) {
  const { thread, now } = props;
  const place = { thread: thread.threadId };
  const { claim, updateTime, pendingNodes } = thread;
  const graph = toRecord(thread.metadataJson).checkpointd_graph;
  // Not with each second that passes: a page of them may hold megabytes.
  const reasons = useMemo(() => reasonsOf(thread.reasons), [thread]);
  return (
    <li>
      <a class="row" href={hrefOf(place)} onClick={follow(place)}>
        <StatusMark status={toStatus(thread.status)} />
        <span class="id" title={thread.threadId}>
          {shorten(thread.threadId, 120)}
        </span>
        <span class="facts">
          {props.hasSize && <Size thread={thread} />}
          {typeof graph === "string" && <span class="graph">{shorten(graph, 40)}</span>}
          {thread.step !== undefined && <span>step {thread.step}</span>}
          {pendingNodes.length > 0 && (
            <span title="Nodes that have not run">→ {shorten(pendingNodes.join(", "), 80)}</span>
          )}
          {claim && (
            <span class="lease">
              held by {shorten(claim.owner, 40)}
              {claim.expireTime &&
                `, ${toSpan(timestampDate(claim.expireTime).getTime() - now)} left`}
            </span>
          )}
        </span>
        <time
          dateTime={updateTime && timestampDate(updateTime).toISOString()}
          title={updateTime && toLocalTime(timestampDate(updateTime))}
        >
          {toAge(updateTime, now)}
        </time>
        {reasons.map(({ kind, text }, i) => (
          <span class={`reason ${kind}`} key={i}>
            {kind === "question" ? "asks: " : "error: "}
            {shorten(text, 240)}
          </span>
        ))}
      </a>
    </li>
  );
}
