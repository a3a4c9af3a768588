/** The list of threads: those that wait for somebody on top, then all, the latest first. */
import type { Thread } from "checkpointd/client";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { useFollow } from "../follow.js";
import { FailureNotice } from "../notice.js";
import { follow, hrefOf, isScrolledBack, type Place, scrollBack } from "../place.js";
import { baseUrl, hasKey, serverNow } from "../service.js";
import { toSpan } from "../words.js";
import { Filters, isFiltered } from "./filters.js";
import { ImportButton } from "./import_button.js";
import { hasWaiting, readPage, readWaiting, type ShownPage, toPosition } from "./read_threads.js";
import { useStill } from "./still.js";
import { ThreadRow } from "./thread_row.js";

/** Those that wait are searched for among many. */
const waitingPause = 4_000;

export function ThreadsPage({
  place,
  onKeyWanted,
}: {
  place: Place;
  onKeyWanted: (why: string) => void;
}) {
  const { sizes, ...asked } = place;
  const key = hrefOf(asked);
  // Each is drawn when its own answer is there.
  const page = useFollow<ShownPage>(
    `page ${key}`,
    (before, signal, show) => readPage(place, before, signal, show),
    { isKept: true },
  );
  const waiting = useFollow<Thread[]>(
    `waiting ${key}`,
    (before, signal) => readWaiting(place, before, signal),
    { isKept: true, pauseAtLeast: waitingPause },
  );
  const again = () => {
    page.again();
    waiting.again();
  };
  const failure = page.failure ?? waiting.failure;
  const now = useNow();
  useEffect(() => {
    document.title = "Threads · checkpointd";
  }, []);
  useEffect(() => {
    if (failure?.kind === "key") onKeyWanted(failure.text);
  }, [failure]);
  // One who comes back to where the list had been scrolled finds it as high as it was.
  const isWhole = page.seen !== undefined && (!hasWaiting(place) || waiting.seen !== undefined);
  const mayDraw = isWhole || failure !== undefined || !isScrolledBack();
  const seen = mayDraw ? page.seen : undefined;
  const onTop = (mayDraw && waiting.seen) || [];
  // Those on top are not told twice.
  const ids = new Set(onTop.map(({ threadId }) => threadId));
  const others = seen?.threads.filter(({ threadId }) => !ids.has(threadId)) ?? [];
  const box = useRef<HTMLDivElement>(null);
  const { drawn, isBehind, catchUp } = useStill(key, { waiting: onTop, others }, box);
  const isDrawn = seen !== undefined && !seen.isSearching;
  useLayoutEffect(() => {
    if (isDrawn) scrollBack();
  }, [isDrawn, key]);
  const last = seen?.threads.at(-1);
  const { after: _, ...first } = place;
  return (
    <div class="threads">
      <div class="head">
        <h1>Threads</h1>
        <Live isAway={failure !== undefined} pause={page.pause} onAgain={again} />
        <ImportButton />
      </div>
      <Filters place={place} />
      {failure && failure.kind !== "key" && (
        <div class={seen && "over"}>
          <FailureNotice failure={failure} onAgain={again} />
        </div>
      )}
      {failure?.field?.match(/^(order|filter.thread_id_prefix)$/) && place.order !== "id" && (
        <p class="dim">
          Who may not read all threads{" "}
          <a href={hrefOf({ ...place, order: "id" })} onClick={follow({ ...place, order: "id" })}>
            lists them by id
          </a>
          , with a prefix.
        </p>
      )}
      <div ref={box}>
        {drawn.waiting.length > 0 && (
          <Section
            title="Waiting for somebody"
            threads={drawn.waiting}
            now={now}
            hasSizes={sizes !== undefined}
            class="waiting"
          />
        )}
        {drawn.others.length > 0 && (
          <Section
            title={place.order === "id" ? "By id" : "Latest first"}
            threads={drawn.others}
            now={now}
            hasSizes={sizes !== undefined}
          />
        )}
        {isDrawn && seen.threads.length === 0 && <Nothing isFiltered={isFiltered(place)} />}
        {seen?.isSearching && <p class="dim loading">Searching further back…</p>}
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
        {isBehind && (
          <button type="button" class="behind" onClick={catchUp}>
            Show what changed
          </button>
        )}
      </div>
    </div>
  );
}

function Section(props: {
  title: string;
  threads: Thread[];
  now: number;
  hasSizes: boolean;
  class?: string;
}) {
  const id = `section-${props.class ?? "all"}`;
  return (
    <section class={`list ${props.class ?? ""}`} aria-labelledby={id}>
      <h2 id={id}>{props.title}</h2>
      <ul>
        {props.threads.map((thread) => (
          <ThreadRow
            key={thread.threadId}
            thread={thread}
            now={props.now}
            hasSize={props.hasSizes}
          />
        ))}
      </ul>
    </section>
  );
}

/** A look is more than a minute away where what is asked for takes long to be found. */
const longPause = 60_000;

function Live(props: { isAway: boolean; pause: number; onAgain: () => void }) {
  const isSeldom = props.pause > longPause && !props.isAway;
  return (
    <>
      <span class={`live ${props.isAway ? "away" : ""}`} role="status">
        {props.isAway ? "not connected" : isSeldom ? `every ${toSpan(props.pause)}` : "live"}
      </span>
      {isSeldom && (
        <button type="button" class="quiet" onClick={props.onAgain}>
          Look now
        </button>
      )}
    </>
  );
}

function Nothing({ isFiltered }: { isFiltered: boolean }) {
  if (isFiltered) {
    return (
      <div class="nothing">
        <p>No thread matches the filters.</p>
        <a href={hrefOf({})} onClick={follow({})}>
          Show all threads
        </a>
      </div>
    );
  }
  const url = JSON.stringify(baseUrl);
  return (
    <div class="nothing">
      <p>No threads yet. Give an agent this service, and they appear here:</p>
      <pre>
        <code>{`import { ConnectSaver } from "checkpointd";
const checkpointer = ConnectSaver.fromUrl(${url}${hasKey() ? ", { token }" : ""});`}</code>
      </pre>
      <p>In Python:</p>
      <pre>
        <code>{`from checkpointd import ConnectSaver
checkpointer = ConnectSaver(${url}${hasKey() ? ", token=token" : ""})`}</code>
      </pre>
    </div>
  );
}

/** The time at the server, once a second, for what says how long ago something was. */
export function useNow(): number {
  const [now, setNow] = useState(serverNow);
  useEffect(() => {
    const timer = setInterval(() => !document.hidden && setNow(serverNow()), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
}
