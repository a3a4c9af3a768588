/** Which threads are shown: the conditions of the API, in the address. */
import { useEffect, useRef, useState } from "preact/hooks";
import { go, type Place } from "../place.js";
import { statuses } from "../words.js";

const spans: [text: string, label: string][] = [
  ["", "any time"],
  ["15m", "15 minutes"],
  ["1h", "an hour"],
  ["1d", "a day"],
  ["7d", "7 days"],
  ["30d", "30 days"],
];

/** Whether it is any but all. */
export const isFiltered = ({ status, prefix, metadata, graph, within, after }: Place) =>
  [status, prefix, metadata, graph, within, after].some((each) => each !== undefined);

export function Filters({ place }: { place: Place }) {
  const chosen = new Set(place.status?.split(",") ?? []);
  /** Where a condition changes the list begins anew. */
  const set = (change: { [Name in keyof Place]?: string | undefined }) => {
    const next = { ...place, after: undefined, ...change };
    go(
      Object.fromEntries(Object.entries(next).filter(([, value]) => value)) as Place,
      ["prefix", "metadata", "graph", "sizes"].some((name) => name in change),
    );
  };
  const toggle = (status: string) => {
    if (!chosen.delete(status)) chosen.add(status);
    set({ status: statuses.filter((each) => chosen.has(each)).join(",") });
  };
  return (
    <search>
      <form class="filters" onSubmit={(event) => event.preventDefault()}>
        <fieldset>
          <legend>Status</legend>
          {statuses.map((status) => (
            <button
              type="button"
              key={status}
              class={`chip ${status}`}
              aria-pressed={chosen.has(status)}
              onClick={() => toggle(status)}
            >
              {status}
            </button>
          ))}
        </fieldset>
        <Text label="Id begins with" value={place.prefix} onText={(prefix) => set({ prefix })} />
        <Text label="Graph" value={place.graph} onText={(graph) => set({ graph })} />
        <Text
          label="Metadata contains"
          isWide
          placeholder='{"source": "loop"}'
          value={place.metadata}
          onText={(metadata) => set({ metadata })}
          problemOf={(text) => (isObject(text) ? undefined : 'a JSON object, as {"user": "ada"}')}
        />
        <label>
          Updated within
          <select
            value={place.within ?? ""}
            onChange={(event) => set({ within: event.currentTarget.value })}
          >
            {spans.map(([text, label]) => (
              <option key={text} value={text}>
                {label}
              </option>
            ))}
          </select>
        </label>
        <label>
          Order
          <select
            value={place.order ?? ""}
            onChange={(event) => set({ order: event.currentTarget.value })}
          >
            <option value="">latest first</option>
            <option value="id">by id</option>
          </select>
        </label>
        <button
          type="button"
          class="chip"
          aria-pressed={place.sizes !== undefined}
          title="Counts what is stored of the threads in view"
          onClick={() => set({ sizes: place.sizes ? "" : "1", after: place.after })}
        >
          Sizes
        </button>
      </form>
    </search>
  );
}

function isObject(text: string): boolean {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value);
  } catch {
    return false;
  }
}

/** A text that is asked for when whoever types rests. */
function Text(props: {
  label: string;
  placeholder?: string;
  isWide?: boolean;
  value: string | undefined;
  onText: (text: string) => void;
  problemOf?: (text: string) => string | undefined;
}) {
  const [text, setText] = useState(props.value ?? "");
  const problem = text === "" ? undefined : props.problemOf?.(text);
  // Another condition may be chosen before whoever types rests, and is not to be undone by that.
  const onText = useRef(props.onText);
  onText.current = props.onText;
  useEffect(() => setText(props.value ?? ""), [props.value]);
  useEffect(() => {
    if (text === (props.value ?? "") || problem !== undefined) return;
    const timer = setTimeout(() => onText.current(text), 300);
    return () => clearTimeout(timer);
  }, [text]);
  return (
    <label class={props.isWide ? "wide" : undefined}>
      {props.label}
      <input
        type="search"
        value={text}
        placeholder={props.placeholder}
        aria-invalid={problem !== undefined}
        onInput={(event) => setText(event.currentTarget.value)}
      />
      {problem !== undefined && <span class="problem">{problem}</span>}
    </label>
  );
}
