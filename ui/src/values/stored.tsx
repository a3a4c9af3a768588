/** A large value in part: decoded no further than it is looked at. */
import {
  decodeValue,
  type StoredParts,
  type StoredValue,
  splitValue,
  textOfValue,
} from "checkpointd/client";
import { useEffect, useMemo, useState } from "preact/hooks";
import { runInSteps } from "../steps.js";
import { shorten, toCount, toSize } from "../words.js";
import { Message } from "./conversation.js";
import { Part, Value } from "./value.js";

/** Bytes of a value that is decoded as a whole, of a message among others, and of a part before it is opened. */
const decodedAtOnce = 256 * 1024;
const messageAtOnce = 64 * 1024;
const previewedAtOnce = 4 * 1024;
const partsAtOnce = 100;
const messagesAtOnce = 40;
/** Bytes of a text that are shown at first, and with each "more". */
const textAtFirst = 20_000;
const textAtOnce = 100_000;

/** A stored value of any size. */
export function Stored({ stored }: { stored: StoredValue }) {
  if (stored.data.length <= decodedAtOnce || !["json", "msgpack"].includes(stored.type)) {
    return <Value value={decodeValue(stored)} />;
  }
  return textOfValue(stored, 0, 0) ? <StoredText stored={stored} /> : <Split stored={stored} />;
}

/** The parts of a value; of one that has none where some should be, its bytes. */
function Split({ stored }: { stored: StoredValue }) {
  const parts = useParts(stored);
  if (parts === undefined)
    return <p class="dim loading">Looking at {toSize(stored.data.length)}…</p>;
  if (parts !== null) return <StoredPartsView parts={parts} />;
  const reason = "too large to be decoded, and damaged: it has no parts";
  return <Value value={{ kind: "unknown", type: stored.type, bytes: stored.data, reason }} />;
}

/** undefined while they are found, null of what has none. */
function useParts(stored: StoredValue): StoredParts | null | undefined {
  const [found, setFound] = useState<{ of: unknown; parts: StoredParts | null }>();
  // A part is another object each time that it is asked for, of the same bytes.
  const { buffer, byteOffset } = stored.data;
  useEffect(() => {
    const leaving = new AbortController();
    setFound(undefined);
    runInSteps(splitValue(stored), leaving.signal).then(
      (parts) => setFound({ of: buffer, parts: parts ?? null }),
      () => {},
    );
    return () => leaving.abort();
  }, [buffer, byteOffset]);
  return found?.of === buffer ? found.parts : undefined;
}

/** From the part `from` on. */
export function StoredPartsView({ parts, from = 0 }: { parts: StoredParts; from?: number }) {
  const isTalk = parts.isList && parts.size > from && isMessage(parts.value(parts.size - 1));
  return isTalk ? <Talk parts={parts} from={from} /> : <Tree parts={parts} from={from} />;
}

const isMessage = (part: StoredValue) =>
  part.data.length <= messageAtOnce && decodeValue(part).kind === "message";

/** The last messages, until earlier ones are asked for. */
function Talk({ parts, from }: { parts: StoredParts; from: number }) {
  const [shown, setShown] = useState(messagesAtOnce);
  const first = Math.max(from, parts.size - shown);
  return (
    <div class="conversation">
      {first > from && (
        <button type="button" class="quiet" onClick={() => setShown(shown + 4 * messagesAtOnce)}>
          {toCount(first - from, "earlier message")}
        </button>
      )}
      <ol start={first + 1}>
        {places(first, parts.size).map((i) => (
          <li key={i}>
            <StoredMessage part={parts.value(i)} />
          </li>
        ))}
      </ol>
    </div>
  );
}

function StoredMessage({ part }: { part: StoredValue }) {
  const decoded = useMemo(
    () => (part.data.length <= messageAtOnce ? decodeValue(part) : undefined),
    [part.data.buffer, part.data.byteOffset],
  );
  if (decoded?.kind === "message") return <Message message={decoded} />;
  return (
    <div class="message other">
      {decoded ? <Value value={decoded} /> : <StoredPart name="large message" part={part} />}
    </div>
  );
}

function Tree({ parts, from }: { parts: StoredParts; from: number }) {
  const [shown, setShown] = useState(partsAtOnce);
  const end = Math.min(parts.size, from + shown);
  return (
    <ul class="tree">
      {places(from, end).map((i) => (
        <li key={i}>
          <StoredPart name={parts.key(i)} part={parts.value(i)} />
        </li>
      ))}
      {end < parts.size && (
        <li>
          <button type="button" class="quiet" onClick={() => setShown(shown + partsAtOnce)}>
            {toCount(parts.size - end, "more item")}
          </button>
        </li>
      )}
      {parts.isCut && <li class="dim">What comes after them is in the file alone.</li>}
    </ul>
  );
}

const places = (from: number, end: number) =>
  Array.from({ length: end - from }, (_, i) => from + i);

/** A part, which opens; what is small is decoded already. */
export function StoredPart({ name, part }: { name: string; part: StoredValue }) {
  const [isOpen, setOpen] = useState(false);
  if (part.data.length <= previewedAtOnce) return <Part name={name} value={decodeValue(part)} />;
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        <span class="name">{shorten(name, 200)}</span>{" "}
        <span class="kind">{toSize(part.data.length)}</span>
      </summary>
      {isOpen && <Stored stored={part} />}
    </details>
  );
}

/** A stored text from its beginning, or from a byte of it on, piece by piece. */
export function StoredText({ stored, from = 0 }: { stored: StoredValue; from?: number }) {
  const [shown, setShown] = useState(textAtFirst);
  const piece = textOfValue(stored, from, shown);
  if (!piece) return null;
  const left = piece.bytes - piece.end;
  return (
    <span class="leaf text">
      {piece.text}
      {left > 0 && (
        <button type="button" class="quiet" onClick={() => setShown(shown + textAtOnce)}>
          … {toSize(left)} more
        </button>
      )}
    </span>
  );
}
