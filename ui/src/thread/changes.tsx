/** The difference of a step to its parent, channel by channel. */
import {
  changesOfValue,
  type Decoded,
  isSameValue,
  itemsWithout,
  partsOfValue,
  type ValueChange,
} from "checkpointd/client";
import { useState } from "preact/hooks";
import { toText } from "../values/text.js";
import { partsAtOnce, Value } from "../values/value.js";
import { shorten, toCount } from "../words.js";
import { changedChannels, cutText } from "./difference.js";
import { LargeDifference } from "./large_difference.js";
import { isInternal, type State } from "./tuples.js";

export function Changes({ state, parent }: { state: State; parent: State | undefined }) {
  const all = changedChannels(parent, state);
  const shown = all.filter(({ channel }) => !isInternal(channel));
  const internal = all.length - shown.length;
  const [most, setMost] = useState(partsAtOnce);
  return (
    <div class="changes">
      {shown.length === 0 && (
        <p class="dim">
          No channel of the state changed
          {internal > 0 && `; ${toCount(internal, "channel")} of LangGraph's own did`}.
        </p>
      )}
      {shown.slice(0, most).map(({ channel, before, after, large }) => (
        <section class="channel" key={channel} aria-label={channel}>
          <h3>
            <span class="name">{channel}</span>
            <Sort before={before ?? large?.before} after={after ?? large?.after} />
          </h3>
          {large ? (
            <LargeDifference channel={channel} large={large} before={parent} after={state} />
          ) : (
            <Difference before={before} after={after} />
          )}
        </section>
      ))}
      {shown.length > most && (
        <button type="button" class="quiet" onClick={() => setMost(most + partsAtOnce)}>
          {toCount(shown.length - most, "more channel")}
        </button>
      )}
    </div>
  );
}

function Sort({ before, after }: { before: unknown; after: unknown }) {
  if (before && after) return <span class="tag changed">changed</span>;
  return after ? <span class="tag added">new</span> : <span class="tag removed">emptied</span>;
}

function Difference({
  before,
  after,
}: {
  before: Decoded | undefined;
  after: Decoded | undefined;
}) {
  if (!before || !after) {
    return (
      <div class={after ? "side added" : "side removed"}>
        {(after ?? before) && <Value value={(after ?? before) as Decoded} />}
      </div>
    );
  }
  if (isSameValue(before, after)) return <p class="dim">Written again, with the same value.</p>;
  const [old, now] = [partsOfValue(before), partsOfValue(after)];
  if (old?.isList && now?.isList && isSet(before)) {
    const inOld = [...old.parts.values()];
    const inNow = [...now.parts.values()];
    return <Sides removed={itemsWithout(inOld, inNow)} added={itemsWithout(inNow, inOld)} />;
  }
  if (old?.isList && now?.isList) {
    return <ListDifference before={[...old.parts.values()]} after={[...now.parts.values()]} />;
  }
  return (
    <ul class="places">
      {changesOfValue(before, after).map((change, i) => (
        <li key={i}>
          <PlaceDifference change={change} />
        </li>
      ))}
    </ul>
  );
}

/** Lists grow at their end: what both begin with is left out. */
function ListDifference({ before, after }: { before: Decoded[]; after: Decoded[] }) {
  let same = 0;
  while (same < before.length && same < after.length && isSameValue(before[same], after[same]))
    same++;
  const removed = before.slice(same);
  const added = after.slice(same);
  return (
    <>
      {same > 0 && <p class="dim">{toCount(same, "item")} as before</p>}
      <Sides removed={removed} added={added} />
    </>
  );
}

function Items({ items, isNumbered }: { items: Decoded[]; isNumbered: boolean }) {
  if (isNumbered || items.some(({ kind }) => kind === "message")) {
    return <Value value={{ kind: "list", items }} />;
  }
  return <Page items={items} />;
}

/** Items without their places, page by page. */
function Page({ items }: { items: Decoded[] }) {
  const [shown, setShown] = useState(partsAtOnce);
  return (
    <>
      {items.slice(0, shown).map((item, i) => (
        <div key={i}>
          <Value value={item} isOpen={false} />
        </div>
      ))}
      {items.length > shown && (
        <button type="button" class="quiet" onClick={() => setShown(shown + partsAtOnce)}>
          {toCount(items.length - shown, "more item")}
        </button>
      )}
    </>
  );
}

function Sides(props: { removed: Decoded[]; added: Decoded[]; isNumbered?: boolean }) {
  const { removed, added, isNumbered = false } = props;
  return (
    <>
      {removed.length > 0 && (
        <div class="side removed">
          <Items items={removed} isNumbered={isNumbered} />
        </div>
      )}
      {added.length > 0 && (
        <div class="side added">
          <Items items={added} isNumbered={isNumbered} />
        </div>
      )}
    </>
  );
}

function PlaceDifference({ change: { path, before, after } }: { change: ValueChange }) {
  const name = path.length > 0 && (
    <span class="name">{path.map((key) => shorten(key, 80)).join(" › ")}</span>
  );
  if (isText(before) && isText(after)) {
    const { start, removed, added, end } = cutText(before.value, after.value);
    return (
      <>
        {name}
        <span class="text-difference">
          {start.length > 120 ? `…${start.slice(-120)}` : start}
          {removed !== "" && <del>{shortened(removed)}</del>}
          {added !== "" && <ins>{shortened(added)}</ins>}
          {end.length > 120 ? `${end.slice(0, 120)}…` : end}
        </span>
      </>
    );
  }
  if (isPlain(before) && isPlain(after)) {
    return (
      <>
        {name}
        <span class="text-difference">
          <del>{JSON.stringify(before.value)}</del> → <ins>{JSON.stringify(after.value)}</ins>
        </span>
      </>
    );
  }
  return (
    <>
      {name}
      {before && (
        <div class="side removed">
          <Value value={before} isOpen={!isLarge(before)} />
        </div>
      )}
      {after && (
        <div class="side added">
          <Value value={after} isOpen={!isLarge(after)} />
        </div>
      )}
    </>
  );
}

const shortened = (text: string) => (text.length > 2_000 ? `${text.slice(0, 2_000)}…` : text);
const isLarge = (value: Decoded) => toText(value).length > 400;
const isSet = (value: Decoded) =>
  value.kind === "list" && /^(Set|set|frozenset)$/.test(value.name ?? "");
type JsonValue = Extract<Decoded, { kind: "json" }>;
const isPlain = (value: Decoded | undefined): value is JsonValue =>
  value?.kind === "json" && (typeof value.value !== "object" || value.value === null);
const isText = (value: Decoded | undefined): value is JsonValue & { value: string } =>
  value?.kind === "json" && typeof value.value === "string";
