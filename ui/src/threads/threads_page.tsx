/** The list of threads: those that wait for somebody on top, then all, the latest first. */
import type { Thread } from "checkpointd/client";
import { useEffect, useState } from "preact/hooks";
import { useFollow } from "../follow.js";
import { FailureNotice } from "../notice.js";
import { follow, hrefOf, type Place } from "../place.js";
import { Filters, isFiltered } from "./filters.js";
import { ImportButton } from "./import_button.js";
import { readShown, type Shown, toPosition } from "./read_threads.js";
import { ThreadRow } from "./thread_row.js";

export function ThreadsPage({
  place,
  onKeyWanted,
}: {
  place: Place;
  onKeyWanted: (why: string) => void;
}) {
  const { seen, failure, again } = useFollow<Shown>(hrefOf(place), (before, signal) =>
    readShown(place, before, signal),
  );
  const now = useNow();
  useEffect(() => {
    document.title = "Threads · checkpointd";
  }, []);
  useEffect(() => {
    if (failure?.kind === "key") onKeyWanted(failure.text);
  }, [failure]);
  const last = seen?.threads.at(-1);
  // Those on top are not told twice.
  const onTop = new Set(seen?.waiting.map(({ threadId }) => threadId));
  const others = seen?.threads.filter(({ threadId }) => !onTop.has(threadId)) ?? [];
  const { after: _, ...first } = place;
  return (
    <div class="threads">
      <div class="head">
        <h1>Threads</h1>
        <Live isAway={failure !== undefined} />
        <ImportButton />
      </div>
      <Filters place={place} />
      {failure && failure.kind !== "key" && <FailureNotice failure={failure} onAgain={again} />}
      {failure?.field?.match(/^(order|filter.thread_id_prefix)$/) && place.order !== "id" && (
        <p class="dim">
          Who may not read all threads{" "}
          <a href={hrefOf({ ...place, order: "id" })} onClick={follow({ ...place, order: "id" })}>
            lists them by id
          </a>
          , with a prefix.
        </p>
      )}
      {seen && seen.waiting.length > 0 && (
        <Section title="Waiting for somebody" threads={seen.waiting} now={now} class="waiting" />
      )}
      {others.length > 0 && (
        <Section
          title={place.order === "id" ? "By id" : "Latest first"}
          threads={others}
          now={now}
        />
      )}
      {seen?.threads.length === 0 && <Nothing isFiltered={isFiltered(place)} />}
      {!seen && !failure && <p class="dim loading">Reading threads…</p>}
      <nav class="pages" aria-label="Pages">
        {place.after !== undefined && (
          <a class="button" href={hrefOf(first)} onClick={follow(first)}>
            First page
          </a>
        )}
        {seen?.hasMore && last && (
          <a
            class="button"
            href={hrefOf({ ...place, after: toPosition(last) })}
            onClick={follow({ ...place, after: toPosition(last) })}
          >
            Next page
          </a>
        )}
      </nav>
    </div>
  );
}

function Section(props: { title: string; threads: Thread[]; now: number; class?: string }) {
  const id = `section-${props.class ?? "all"}`;
  return (
    <section class={`list ${props.class ?? ""}`} aria-labelledby={id}>
      <h2 id={id}>{props.title}</h2>
      <ul>
        {props.threads.map((thread) => (
          <ThreadRow key={thread.threadId} thread={thread} now={props.now} />
        ))}
      </ul>
    </section>
  );
}

const Live = ({ isAway }: { isAway: boolean }) => (
  <span class={`live ${isAway ? "away" : ""}`} role="status">
    {isAway ? "not connected" : "live"}
  </span>
);

function Nothing({ isFiltered }: { isFiltered: boolean }) {
  if (isFiltered) return <p class="nothing">No thread is like that.</p>;
  return (
    <div class="nothing">
      <p>No threads yet. Give an agent this service, and they appear here:</p>
      <pre>
        <code>{`import { ConnectSaver } from "checkpointd";
const checkpointer = ConnectSaver.fromUrl("${location.origin}");`}</code>
      </pre>
    </div>
  );
}

/** The time, once a second, for what says how long ago something was. */
export function useNow(): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => !document.hidden && setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
}
