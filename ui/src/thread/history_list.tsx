/** The tree of a thread's checkpoints. Only the rows in view are in the document, however many there are. */
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { go, hrefOf, type Place } from "../place.js";
import { shorten } from "../words.js";
import type { Header, History } from "./history.js";
import { type Place as Lane, layOut, mostLanes } from "./lanes.js";
import { nodesOf } from "./tuples.js";

const rowHeight = 44;
const laneWidth = 14;
/** Rows above and below those in view. */
const spare = 8;

export function HistoryList(props: {
  history: History;
  place: Place;
  /** The checkpoint that is shown. */
  selected: string | undefined;
}) {
  const { history, place, selected } = props;
  const { headers, hasMore } = history;
  const byId = useMemo(() => new Map(headers.map((each) => [each.id, each])), [headers]);
  const lanes = useMemo(() => layOut(headers), [headers]);
  const lanesWide = Math.min(
    mostLanes,
    lanes.reduce((most, { width }) => Math.max(most, width), 1),
  );
  const box = useRef<HTMLDivElement>(null);
  const [view, setView] = useState({ top: 0, height: 600 });
  const isKeyed = useRef(false);
  const measure = () => {
    const element = box.current;
    if (element) setView({ top: element.scrollTop, height: element.clientHeight });
  };
  useLayoutEffect(measure, []);
  useEffect(() => {
    if (!box.current) return;
    const observer = new ResizeObserver(measure);
    observer.observe(box.current);
    return () => observer.disconnect();
  }, []);
  const first = Math.max(0, Math.floor(view.top / rowHeight) - spare);
  const end = Math.min(headers.length, Math.ceil((view.top + view.height) / rowHeight) + spare);
  useEffect(() => {
    if (hasMore && end > headers.length - 3 * spare) history.readMore();
  }, [end, headers.length, hasMore]);
  const index = headers.findIndex(({ id }) => id === selected);
  useEffect(() => {
    const element = box.current;
    if (!element || index < 0) return;
    const top = index * rowHeight;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top + rowHeight > element.scrollTop + element.clientHeight) {
      element.scrollTop = top + rowHeight - element.clientHeight;
    }
    if (!isKeyed.current) return;
    isKeyed.current = false;
    requestAnimationFrame(() =>
      element.querySelector<HTMLElement>("[aria-current=step]")?.focus({ preventScroll: true }),
    );
  }, [index]);
  // The oldest is known when all have been read.
  const [isToOldest, setToOldest] = useState(false);
  useEffect(() => {
    if (!isToOldest) return;
    if (hasMore) history.readMore(true);
    else {
      setToOldest(false);
      goTo(headers.length - 1);
    }
  }, [isToOldest, hasMore, headers.length]);
  const goTo = (wanted: number) => {
    const header = headers[Math.min(headers.length - 1, Math.max(0, wanted))];
    if (!header || header.id === selected) return;
    isKeyed.current = true;
    go({ ...place, checkpoint: header.id }, true);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const steps: Record<string, number> = {
      ArrowDown: index + 1,
      ArrowUp: index - 1,
      Home: 0,
      End: headers.length - 1,
      PageDown: index + 10,
      PageUp: index - 10,
    };
    const wanted = steps[event.key];
    if (wanted === undefined) return;
    event.preventDefault();
    setToOldest(event.key === "End" && hasMore);
    if (event.key !== "End" || !hasMore) goTo(wanted);
  };
  return (
    <div class="history" ref={box} onScroll={measure}>
      <ol
        style={{ height: `${headers.length * rowHeight}px` }}
        onKeyDown={onKeyDown}
        aria-label="Checkpoints, the latest first"
      >
        {headers.slice(first, end).map((header, i) => (
          <Row
            key={header.id}
            header={header}
            what={whatOf(header, byId)}
            lane={lanes[first + i] as Lane}
            lanesWide={lanesWide}
            top={(first + i) * rowHeight}
            isSelected={header.id === selected}
            isTabbed={header.id === selected || (index < 0 && first + i === 0)}
            place={{ ...place, checkpoint: header.id }}
          />
        ))}
      </ol>
    </div>
  );
}

/** What made a checkpoint: the nodes that ran, where its parent is known, else where it came from. */
function whatOf(header: Header, byId: Map<string, Header>): string {
  const parent = header.parent === undefined ? undefined : byId.get(header.parent);
  if (header.parent !== undefined && !parent) return header.source;
  const all = nodesOf(header, parent);
  const nodes = all.filter((node) => node !== "__start__");
  // What only sent tasks ran (LangGraph's Send) no node has seen.
  if (header.source === "loop")
    return nodes.join(", ") || (all.length > 0 ? "start" : "tasks sent");
  return nodes.length > 0 ? `${header.source} as ${nodes.join(", ")}` : header.source;
}

function Row(props: {
  header: Header;
  what: string;
  lane: Lane;
  lanesWide: number;
  top: number;
  isSelected: boolean;
  isTabbed: boolean;
  place: Place;
}) {
  const { header, lane, lanesWide, place } = props;
  const { step, source, time } = header;
  return (
    <li style={{ top: `${props.top}px`, height: `${rowHeight}px` }}>
      <a
        href={hrefOf(place)}
        tabIndex={props.isTabbed ? 0 : -1}
        aria-current={props.isSelected ? "step" : undefined}
        title={header.id}
        onClick={(event) => {
          if (event.metaKey || event.ctrlKey || event.shiftKey) return;
          event.preventDefault();
          go(place, true);
        }}
      >
        <Lanes lane={lane} wide={lanesWide} source={source} />
        <span class="step">{step === undefined ? "–" : step}</span>
        <span class="source">
          {shorten(props.what || "checkpoint", 80)}
          {header.failed && <span class="sign failed"> ✕ failed</span>}
          {header.asks && !header.failed && <span class="sign asks"> ? asks</span>}
          {lane.isFork && <span class="forked"> · fork</span>}
        </span>
        <time dateTime={time?.toISOString()}>{time ? toShortTime(time) : ""}</time>
      </a>
    </li>
  );
}

/** The day is told where it is another than today. */
const toShortTime = (time: Date) =>
  time.toDateString() === new Date().toDateString()
    ? time.toLocaleTimeString()
    : `${time.toLocaleDateString(undefined, { dateStyle: "medium" })}, ${time.toLocaleTimeString()}`;

const x = (lane: number) => lane * laneWidth + laneWidth / 2;

function Lanes({ lane, wide, source }: { lane: Lane; wide: number; source: string }) {
  const middle = rowHeight / 2;
  return (
    <svg
      class="lanes"
      width={wide * laneWidth}
      height={rowHeight}
      viewBox={`0 0 ${wide * laneWidth} ${rowHeight}`}
      aria-hidden="true"
    >
      {lane.lines.map(({ from, to, half }, i) => {
        const [y1, y2] = half === "above" ? [0, middle] : [middle, rowHeight];
        const d =
          from === to
            ? `M${x(from)} ${y1}V${y2}`
            : `M${x(from)} ${y1}C${x(from)} ${middle} ${x(from)} ${middle} ${x(to)} ${y2}`;
        return <path key={i} d={d} class={`lane lane-${Math.max(from, to) % 5}`} />;
      })}
      <circle
        cx={x(Math.min(lane.lane, wide - 1))}
        cy={middle}
        r="4.5"
        class={`dot lane-${lane.lane % 5} ${source}`}
      />
    </svg>
  );
}
