/** A value to look into. Whatever it holds is text here; nothing of it becomes HTML. */
import { type Decoded, partsOfValue } from "checkpointd/client";
import { useEffect, useState } from "preact/hooks";
import { shorten, toCount, toSize } from "../words.js";
import { Conversation } from "./conversation.js";
import { toText } from "./text.js";

/** Parts that are shown before more are asked for, and characters of a text. */
export const partsAtOnce = 100;
export const charactersAtOnce = 2_000;

/** How many characters are shown after so many: more with each time, but none that a page stands still for. */
export const more = (shown: number) => shown + Math.min(9 * shown, 200_000);

/** A value in full: a conversation where it is one, else a tree. `isOpen`: the outermost level is open. */
export function Value({ value, isOpen = true }: { value: Decoded; isOpen?: boolean }) {
  if (value.kind === "message") return <Conversation messages={[value]} />;
  if (value.kind === "list" && value.items.some(({ kind }) => kind === "message")) {
    return <Conversation messages={value.items} />;
  }
  const parts = partsOfValue(value);
  if (parts && parts.parts.size > 0 && isOpen) return <Parts parts={parts.parts} />;
  return <Leaf value={value} />;
}

/** The parts of a list or an object, each of which opens. */
function Parts({ parts }: { parts: Map<string, Decoded> }) {
  const [shown, setShown] = useState(partsAtOnce);
  const all = [...parts];
  return (
    <ul class="tree">
      {all.slice(0, shown).map(([key, part]) => (
        <li key={key}>
          <Part name={key} value={part} />
        </li>
      ))}
      {all.length > shown && (
        <li>
          <button type="button" class="quiet" onClick={() => setShown(shown + partsAtOnce)}>
            {toCount(all.length - shown, "more item")}
          </button>
        </li>
      )}
    </ul>
  );
}

/** A part of something, with its name, which opens if there is something in it. */
export function Part({ name, value }: { name: string; value: Decoded }) {
  const [isOpen, setOpen] = useState(false);
  const inside = partsOfValue(value)?.parts.size ?? 0;
  if (inside === 0 && value.kind !== "message") {
    return (
      <div class="part">
        <span class="name">{shorten(name, 200)}</span>
        <Leaf value={value} />
      </div>
    );
  }
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        <span class="name">{shorten(name, 200)}</span> <Kind value={value} />
        {!isOpen && <span class="preview">{shorten(toText(value), 100)}</span>}
      </summary>
      {isOpen && <Value value={value} />}
    </details>
  );
}

/** What sort of thing it is. */
export function Kind({ value }: { value: Decoded }) {
  const parts = partsOfValue(value);
  if (!parts) return value.kind === "json" ? null : <span class="kind">{value.kind}</span>;
  const own = parts.name.split(" ")[1];
  const size = parts.parts.size;
  return (
    <span class="kind">
      {own || (parts.isList ? "list" : "object")} · {size}
    </span>
  );
}

/** What has no parts. */
function Leaf({ value }: { value: Decoded }) {
  switch (value.kind) {
    case "none":
      return <span class="leaf none">no value</span>;
    case "bytes":
      return <Bytes bytes={value.bytes} />;
    case "unknown":
      return (
        <div class="unknown">
          <span>
            <span class="kind">{value.type}</span> {value.reason}
          </span>
          <Bytes bytes={value.bytes} />
        </div>
      );
    case "json":
      if (typeof value.value === "string") return <Text text={value.value} />;
      return <span class={`leaf ${typeof value.value}`}>{JSON.stringify(value.value)}</span>;
    default:
      return <span class="leaf">{shorten(toText(value), 200)}</span>;
  }
}

/** A text, of which a long one is shown piece by piece. */
export function Text({ text }: { text: string }) {
  const [shown, setShown] = useState(charactersAtOnce);
  return (
    <span class="leaf text">
      {text.slice(0, shown)}
      {text.length > shown && (
        <button type="button" class="quiet" onClick={() => setShown(more(shown))}>
          … {toCount(text.length - shown, "more character")}
        </button>
      )}
    </span>
  );
}

const imageTypes: [type: string, magic: number[]][] = [
  ["image/png", [0x89, 0x50, 0x4e, 0x47]],
  ["image/jpeg", [0xff, 0xd8, 0xff]],
  ["image/gif", [0x47, 0x49, 0x46, 0x38]],
  ["image/webp", [0x52, 0x49, 0x46, 0x46]],
];
const bytesAtOnce = 256;
/** A picture of fewer bytes is shown without being asked for. */
const shownAtOnce = 200_000;

/** Bytes: how many, as hexadecimal digits, and the picture if they are one. */
export function Bytes({ bytes }: { bytes: Uint8Array }) {
  const [isOpen, setOpen] = useState(false);
  const type = imageTypes.find(([, magic]) => magic.every((byte, i) => bytes[i] === byte))?.[0];
  return (
    <details
      class="bytes"
      open={type !== undefined && bytes.length < shownAtOnce}
      onToggle={(event) => setOpen(event.currentTarget.open)}
    >
      <summary>
        <span class="kind">{type ?? "bytes"}</span> {toSize(bytes.length)}
      </summary>
      {isOpen && type && <Picture bytes={bytes} type={type} />}
      {isOpen && (
        <pre>
          {toHex(bytes.subarray(0, bytesAtOnce))}
          {bytes.length > bytesAtOnce && `\n… ${toSize(bytes.length - bytesAtOnce)} more`}
        </pre>
      )}
    </details>
  );
}

function Picture({ bytes, type }: { bytes: Uint8Array; type: string }) {
  const [url, setUrl] = useState<string>();
  // Bytes may begin as a picture does, and be none.
  const [isNone, setNone] = useState(false);
  useEffect(() => {
    setNone(false);
    const made = URL.createObjectURL(new Blob([bytes as BlobPart], { type }));
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [bytes]);
  if (isNone) return <p class="dim">No picture that this browser can show.</p>;
  return (
    <img
      src={url}
      alt={`What the ${toSize(bytes.length)} show`}
      onError={() => setNone(url !== undefined)}
    />
  );
}

/** Sixteen a line: where they are, their digits, the letters among them. */
function toHex(bytes: Uint8Array): string {
  const lines: string[] = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const line = [...bytes.subarray(at, at + 16)];
    const digits = line.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const letters = line
      .map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : "·"))
      .join("");
    lines.push(`${at.toString(16).padStart(4, "0")}  ${digits.padEnd(47)}  ${letters}`);
  }
  return lines.join("\n");
}
