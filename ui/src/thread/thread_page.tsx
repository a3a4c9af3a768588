/** A thread: how it stands, the tree of its checkpoints, and one of these. */
import { timestampDate } from "@bufbuild/protobuf/wkt";
import type { Thread } from "checkpointd/client";
import { useEffect, useMemo, useState } from "preact/hooks";
import { useFollow } from "../follow.js";
import { FailureNotice, Guarded } from "../notice.js";
import { follow, go, hrefOf, type Place } from "../place.js";
import { threads, toFailure } from "../service.js";
import { StatusMark } from "../status.js";
import { useNow } from "../threads/threads_page.js";
import { reasonsOf } from "../values/reasons.js";
import { Text } from "../values/value.js";
import { shorten, toAge, toCount, toSize, toSpan, toStatus } from "../words.js";
import { Acts } from "./acts.js";
import { readNamespaces, useHistory } from "./history.js";
import { HistoryList } from "./history_list.js";
import { endsOf } from "./lanes.js";
import { StepPanel } from "./step.js";

interface Look {
  text: string;
  thread: Thread | undefined;
}

export function ThreadPage(props: {
  place: Place & { thread: string };
  onKeyWanted: (why: string) => void;
}) {
  const { place, onKeyWanted } = props;
  const threadId = place.thread;
  const ns = place.ns ?? "";
  const { seen, failure, again } = useFollow<Look>(threadId, async (before, signal) => {
    const { thread } = await threads.getThread({ threadId, withReasons: true }, { signal });
    const text = JSON.stringify(thread ?? null, plain);
    return before?.text === text ? before : { text, thread };
  });
  const history = useHistory(threadId, ns);
  const onChange = () => {
    again();
    history.again();
  };
  useEffect(() => {
    document.title = `${shorten(threadId, 60)} · checkpointd`;
  }, [threadId]);
  const trouble = failure ?? history.failure;
  useEffect(() => {
    if (trouble?.kind === "key") onKeyWanted(trouble.text);
  }, [trouble]);
  const head = history.headers[0]?.id;
  const selected = place.checkpoint ?? head;
  const isGone = seen && !seen.thread && history.isRead && history.headers.length === 0;
  return (
    <div class="thread">
      <nav class="crumbs" aria-label="Where you are">
        <a href={hrefOf({})} onClick={follow({})}>
          Threads
        </a>
      </nav>
      {trouble && trouble.kind !== "key" && <FailureNotice failure={trouble} onAgain={onChange} />}
      <ThreadHead threadId={threadId} thread={seen?.thread} place={place} onChange={onChange} />
      {isGone ? (
        <p class="nothing">There is no thread of that name.</p>
      ) : (
        <div class="panes">
          <aside aria-label="History">
            <Namespaces
              threadId={threadId}
              place={place}
              stamp={seen && (seen.thread?.checkpointId ?? "")}
            />
            <HistoryList history={history} place={place} selected={selected} />
          </aside>
          <section class="pane" aria-label="Checkpoint">
            {selected !== undefined ? (
              <Guarded of={selected}>
                <StepPanel
                  place={place}
                  checkpointId={selected}
                  ends={endsOf(history.headers)}
                  stamp={selected === head ? (seen?.text ?? "") : ""}
                />
              </Guarded>
            ) : (
              history.isRead && <p class="nothing">This namespace has no checkpoint.</p>
            )}
          </section>
        </div>
      )}
    </div>
  );
}

const plain = (_: string, value: unknown) =>
  typeof value === "bigint" ? String(value) : value instanceof Uint8Array ? value.length : value;

function ThreadHead(props: {
  threadId: string;
  thread: Thread | undefined;
  place: Place & { thread: string };
  onChange: () => void;
}) {
  const { threadId, thread, place } = props;
  const now = useNow();
  const claim = thread?.claim;
  const reasons = useMemo(() => reasonsOf(thread?.reasons ?? []), [thread]);
  return (
    <div class="thread-head">
      <div class="title">
        <h1 title={threadId}>{shorten(threadId, 200)}</h1>
        {thread && <StatusMark status={toStatus(thread.status)} />}
        <Acts threadId={threadId} thread={thread} place={place} onChange={props.onChange} />
      </div>
      {thread && (
        <p class="facts">
          <span>updated {toAge(thread.updateTime, now)} ago</span>
          {thread.step !== undefined && <span>step {thread.step}</span>}
          {thread.pendingNodes.length > 0 && (
            <span>next: {shorten(thread.pendingNodes.join(", "), 120)}</span>
          )}
          {claim && (
            <span class="lease">
              held by {shorten(claim.owner, 60)}
              {claim.expireTime &&
                `, ${toSpan(timestampDate(claim.expireTime).getTime() - now)} left`}
            </span>
          )}
          <Counts threadId={threadId} />
        </p>
      )}
      {reasons.map(({ kind, node, text }, i) => (
        <div class={`reason ${kind}`} key={i}>
          <span class="kind">
            {kind === "question"
              ? node
                ? `${node} asks`
                : "asks"
              : node
                ? `error in ${node}`
                : "error"}
          </span>{" "}
          <Text text={text} />
        </div>
      ))}
    </div>
  );
}

/** How much is stored: told when it is asked for, since counting reads the size of every row. */
function Counts({ threadId }: { threadId: string }) {
  const [text, setText] = useState<string>();
  if (text !== undefined) return <span>{text}</span>;
  return (
    <button
      type="button"
      class="quiet"
      onClick={async () => {
        setText("counting…");
        try {
          const { thread } = await threads.getThread({ threadId, withCounts: true });
          const { checkpoints = 0n, storedBytes = 0n } = thread?.counts ?? {};
          setText(`${toCount(checkpoints, "checkpoint")}, ${toSize(Number(storedBytes))}`);
        } catch (error) {
          setText(toFailure(error)?.text);
        }
      }}
    >
      how much is stored?
    </button>
  );
}

/** The namespaces that the thread's subgraphs keep their checkpoints in. */
function Namespaces(props: { threadId: string; place: Place; stamp: string | undefined }) {
  const { threadId, place, stamp } = props;
  const [names, setNames] = useState<string[]>([]);
  useEffect(() => {
    if (stamp === undefined) return;
    const under = new AbortController();
    readNamespaces(threadId, under.signal).then(
      (found) => setNames([...found.keys()].sort()),
      () => {},
    );
    return () => under.abort();
  }, [threadId, stamp]);
  const current = place.ns ?? "";
  const all = [...new Set(["", ...names, current])];
  if (all.length === 1) return null;
  return (
    <label class="namespaces">
      Graph
      <select
        value={current}
        onChange={(event) => {
          const { checkpoint: _, against: _1, ns: _2, ...rest } = place;
          const ns = event.currentTarget.value;
          go(ns === "" ? rest : { ...rest, ns });
        }}
      >
        {all.map((name) => (
          <option key={name} value={name}>
            {name === ""
              ? "the root graph"
              : `${"  ".repeat(name.split("|").length - 1)}${shorten(name, 80)}`}
          </option>
        ))}
      </select>
    </label>
  );
}
