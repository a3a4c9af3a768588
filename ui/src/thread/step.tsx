/** One checkpoint: its state, what changed, its tasks, its metadata. */
import { useState } from "preact/hooks";
import { FailureNotice } from "../notice.js";
import { go, type Place } from "../place.js";
import { Kind, partsAtOnce, Value } from "../values/value.js";
import { shorten, timeOfId, toCount, toRecord } from "../words.js";
import { Against } from "./against.js";
import { Changes } from "./changes.js";
import { changedChannels } from "./difference.js";
import type { Header } from "./history.js";
import { LargeValue } from "./large_value.js";
import { Tasks } from "./tasks.js";
import {
  isInternal,
  nodesOf,
  type Reading,
  type State,
  sentNodesOf,
  useCheckpoint,
} from "./tuples.js";

const tabs = ["state", "changes", "tasks", "metadata"] as const;
type Tab = (typeof tabs)[number];
const labels: Record<Tab, string> = {
  state: "State",
  changes: "Changes",
  tasks: "Tasks",
  metadata: "Metadata",
};

export function StepPanel(props: {
  place: Place & { thread: string };
  checkpointId: string;
  /** Of the thread's branches, which it can be compared with. */
  ends: Header[];
  /** Another where the writes of the checkpoint may have changed. */
  stamp: string;
}) {
  const { place, checkpointId, ends, stamp } = props;
  const ns = place.ns ?? "";
  const { state, failure, isGone } = useCheckpoint(place.thread, ns, checkpointId, stamp);
  const parentId = state?.tuple.parentCheckpointId;
  const parent = useCheckpoint(place.thread, ns, parentId, "");
  const against = useCheckpoint(place.thread, ns, place.against, "");
  if (failure) return <FailureNotice failure={failure} />;
  if (isGone) return <p class="nothing">This checkpoint is not stored, or no longer.</p>;
  const isParentRead =
    state !== undefined &&
    (parentId === undefined || parent.state !== undefined || parent.isGone === true);
  const beforeId = place.against ?? parentId;
  const before = place.against === undefined ? parent : against;
  const isBeforeRead =
    state !== undefined &&
    (beforeId === undefined || before.state !== undefined || before.isGone === true);
  const tab = tabs.find((each) => each === place.tab) ?? "state";
  const counts = state ? countsOf(state, isBeforeRead ? before : undefined) : {};
  return (
    <div class="step-panel">
      {state && <StepHead state={state} parent={parent.state} isParentRead={isParentRead} />}
      <div
        role="tablist"
        aria-label="Of this checkpoint"
        onKeyDown={(event) => {
          const by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
          const next = tabs[tabs.indexOf(tab) + by];
          if (by === 0 || next === undefined) return;
          go({ ...place, tab: next }, true);
          document.getElementById(`tab-${next}`)?.focus();
        }}
      >
        {tabs.map((each) => (
          <button
            type="button"
            role="tab"
            key={each}
            id={`tab-${each}`}
            aria-selected={each === tab}
            aria-controls="tab-panel"
            tabIndex={each === tab ? 0 : -1}
            onClick={() => go({ ...place, tab: each }, true)}
          >
            {labels[each]}
            {counts[each] !== undefined && <span class="count">{counts[each]}</span>}
          </button>
        ))}
      </div>
      {/* Another checkpoint has nothing of what was read, or opened, of this one. */}
      <div role="tabpanel" id="tab-panel" key={checkpointId} aria-labelledby={`tab-${tab}`}>
        {/* The tabs stay meanwhile, and with them the focus of who follows a thread. */}
        {!state && <p class="dim loading">Reading the checkpoint…</p>}
        {state && tab === "state" && <StateView state={state} />}
        {state && tab === "changes" && (
          <>
            <Against place={place} checkpointId={checkpointId} ends={ends} />
            {before.failure && <FailureNotice failure={before.failure} />}
            {before.isGone && (
              <p class="dim">What it is compared with is not stored: all of it is new.</p>
            )}
            {isBeforeRead ? (
              // Of another pair nothing that was read, or opened, is left.
              <Changes key={beforeId} state={state} parent={before.state} />
            ) : (
              !before.failure && <p class="dim loading">Reading what was before…</p>
            )}
          </>
        )}
        {state && tab === "tasks" && <Tasks tuple={state.tuple} />}
        {state && tab === "metadata" && <Metadata state={state} />}
      </div>
    </div>
  );
}

/** How many things each tab has; of the changes only where what was before was read. */
function countsOf(state: State, before: Reading | undefined): Partial<Record<Tab, number>> {
  const { pendingWrites, omitted } = state.tuple;
  const channels = [
    ...state.values.keys(),
    ...omitted.filter(({ taskId }) => taskId === "").map(({ channel }) => channel),
  ];
  const taskIds = [...pendingWrites, ...omitted].map(({ taskId }) => taskId);
  const counts = {
    state: channels.filter((name) => !isInternal(name)).length,
    tasks: new Set(taskIds.filter((taskId) => taskId !== "")).size,
  };
  if (!before) return counts;
  const changed = changedChannels(before.state, state);
  return { ...counts, changes: changed.filter(({ channel }) => !isInternal(channel)).length };
}

function StepHead(props: { state: State; parent: State | undefined; isParentRead: boolean }) {
  const { state, parent, isParentRead } = props;
  const { key, metadataJson } = state.tuple;
  const id = key?.checkpointId ?? "";
  const { step, source } = toRecord(metadataJson);
  const nodes = isParentRead
    ? [...new Set([...nodesOf(state, parent), ...(parent ? sentNodesOf(parent) : [])])]
    : [];
  const time = timeOfId(id);
  return (
    <div class="step-head">
      <h2>
        Step {typeof step === "number" ? step : "–"}
        {nodes.length > 0 && " "}
        {nodes.length > 0 && <span class="nodes">after {shorten(nodes.join(", "), 120)}</span>}
      </h2>
      <p class="dim">
        {typeof source === "string" && source !== "" && `${shorten(source, 40)} · `}
        {time && `${time.toLocaleString()} · `}
        <code title="The checkpoint's id">{id}</code>
      </p>
    </div>
  );
}

function StateView({ state }: { state: State }) {
  const [shown, setShown] = useState(partsAtOnce);
  const [isInternalOpen, setInternalOpen] = useState(false);
  const names = [...state.values.keys()];
  const own = names.filter((name) => !isInternal(name));
  const internal = names.filter(isInternal);
  const large = state.tuple.omitted.filter(({ taskId }) => taskId === "");
  // What is said is looked at first.
  own.sort((a, b) => Number(isTalk(state, b)) - Number(isTalk(state, a)));
  return (
    <>
      {names.length + large.length === 0 && <p class="dim">No channel holds a value.</p>}
      {own.slice(0, shown).map((name) => (
        <Channel key={name} name={name} state={state} />
      ))}
      {own.length > shown && (
        <button type="button" class="quiet" onClick={() => setShown(shown + partsAtOnce)}>
          {toCount(own.length - shown, "more channel")}
        </button>
      )}
      {large.map((omitted) => (
        <section class="channel" key={omitted.channel} aria-label={omitted.channel}>
          <h3>
            <span class="name">{omitted.channel}</span>
            <Version version={omitted.version} />
          </h3>
          <LargeValue tuple={state.tuple} omitted={omitted} />
        </section>
      ))}
      {internal.length > 0 && (
        <details class="internal" onToggle={(event) => setInternalOpen(event.currentTarget.open)}>
          <summary>{toCount(internal.length, "channel")} of LangGraph's own</summary>
          {isInternalOpen &&
            internal
              .slice(0, 10 * partsAtOnce)
              .map((name) => <Channel key={name} name={name} state={state} />)}
          {isInternalOpen && internal.length > 10 * partsAtOnce && (
            <p class="dim">The first {10 * partsAtOnce} of them.</p>
          )}
        </details>
      )}
    </>
  );
}

function isTalk(state: State, name: string): boolean {
  const value = state.values.get(name);
  return value?.kind === "list" && value.items.some(({ kind }) => kind === "message");
}

function Channel({ name, state }: { name: string; state: State }) {
  const value = state.values.get(name);
  if (!value) return null;
  return (
    <section class="channel" aria-label={name}>
      <h3>
        <span class="name">
          {name} <Kind value={value} />
        </span>
        <Version version={Object.hasOwn(state.versions, name) ? state.versions[name] : ""} />
      </h3>
      <Value value={value} />
    </section>
  );
}

/** How often a channel was written: its version without the fraction that tells branches apart. */
function Version({ version }: { version: unknown }) {
  // Whatever a client stored in its place is no version, and may be no text either.
  if (typeof version !== "string" && typeof version !== "number") return null;
  const count = Number.parseInt(String(version), 10);
  return (
    <span class="version" title={`The channel's version: ${shorten(String(version), 200)}`}>
      {!Number.isNaN(count) && `version ${count}`}
    </span>
  );
}

function Metadata({ state }: { state: State }) {
  const { metadataJson, parentCheckpointId } = state.tuple;
  const [isRaw, setRaw] = useState(false);
  return (
    <section class="channel" aria-label="Metadata">
      <h3>
        <span class="name">metadata</span>
        <button type="button" class="quiet" onClick={() => setRaw(!isRaw)}>
          {isRaw ? "as a tree" : "as JSON"}
        </button>
      </h3>
      {isRaw ? (
        <pre class="raw">{JSON.stringify(toRecord(metadataJson), null, 2)}</pre>
      ) : (
        <Value value={{ kind: "json", value: toRecord(metadataJson) as never }} />
      )}
      <p class="dim">
        Parent: {parentCheckpointId ? <code>{parentCheckpointId}</code> : "none, it is the first"}
      </p>
    </section>
  );
}
