/**
 * Content in blocks, as LangChain and the models' makers write them: what is said, thought, shown and
 * asked for. Whatever a block refers to elsewhere is named and never fetched.
 */
import { type Decoded, type DecodedMessage, partsOfValue } from "checkpointd/client";
import { useState } from "preact/hooks";
import { shorten, toCount } from "../words.js";
import { toText } from "./text.js";
import { Bytes, charactersAtOnce, more, Part, Value } from "./value.js";

/** The fields of an object; none of anything else. */
export function toFields(value: Decoded): Record<string, Decoded | undefined> {
  const parts = partsOfValue(value);
  // A null prototype: whatever a field is called, it is only a field.
  return Object.assign(
    Object.create(null),
    parts && !parts.isList ? Object.fromEntries(parts.parts) : {},
  );
}

const textOf = (value: Decoded | undefined): string | undefined =>
  value?.kind === "json" && typeof value.value === "string" ? value.value : undefined;

const media = /^(image|audio|video|file|document|media)/;
const ofServer = /^(server_tool|web_search|code_interpreter|file_search|mcp_)/;

/** A block. A call that is among the message's `calls` is shown with these. */
export function Block(props: { block: Decoded; calls: DecodedMessage["toolCalls"] }) {
  const { block, calls } = props;
  const said = textOf(block);
  if (said !== undefined) return <Prose text={said} />;
  const fields = toFields(block);
  const type = textOf(fields.type) ?? "";
  const text = textOf(fields.text) ?? textOf(fields.refusal);
  if (/^(text|output_text|input_text|refusal|text-plain)$/.test(type) && text !== undefined) {
    const { annotations } = fields;
    const hasMore = annotations && (partsOfValue(annotations)?.parts.size ?? 0) > 0;
    return (
      <div class="block">
        {type === "refusal" && <span class="kind">refusal</span>} <Prose text={text} />
        {hasMore && <Part name="annotations" value={annotations} />}
      </div>
    );
  }
  if (/^(reasoning|thinking)/.test(type)) return <Thought block={block} />;
  if (type === "tool_call" || type === "tool_use") {
    const id = textOf(fields.id);
    if (calls.some((call) => call.id === id)) return null;
  }
  if (type !== "" && /(_call|_use)$/.test(type)) {
    const name = textOf(fields.name) ?? type;
    const args = fields.args ?? fields.input ?? fields.arguments ?? fields.action;
    return (
      <div class="tool-call">
        <span>
          calls <strong>{shorten(name, 200)}</strong>
          {ofServer.test(type) && " where the model runs"}
          {fields.id && <span class="call">{shorten(toText(fields.id), 200)}</span>}
        </span>
        {args ? <Value value={args} /> : <Part name={type} value={block} />}
      </div>
    );
  }
  if (/_result$/.test(type)) {
    const id = fields.tool_call_id ?? fields.toolCallId ?? fields.tool_use_id;
    const status = textOf(fields.status);
    const output = fields.output ?? fields.content;
    return (
      <div class="tool-call">
        <span>
          answer{id && <span class="call">to {shorten(toText(id), 200)}</span>}{" "}
          {status === "error" && <span class="tag removed">error</span>}
        </span>
        {output ? <Value value={output} /> : <Part name={type} value={block} />}
      </div>
    );
  }
  if (media.test(type)) return <Media type={type} block={block} />;
  return (
    <div class="block">
      <Part name={type || "block"} value={block} />
    </div>
  );
}

/** What a model thought, which is rarely read. */
function Thought({ block }: { block: Decoded }) {
  const fields = toFields(block);
  const [isOpen, setOpen] = useState(false);
  const summaries = fields.summary && partsOfValue(fields.summary);
  const text =
    textOf(fields.reasoning) ??
    textOf(fields.thinking) ??
    [...(summaries?.parts.values() ?? [])]
      .map((each) => textOf(toFields(each).text) ?? "")
      .join("\n");
  return (
    <details class="block" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        <span class="kind">reasoning</span>{" "}
        {!isOpen && <span class="preview">{shorten(text, 100)}</span>}
      </summary>
      {isOpen && (text === "" ? <Value value={block} /> : <Prose text={text} />)}
    </details>
  );
}

/** A picture or another file: its bytes where they are here, else where it says that it is. */
function Media({ type, block }: { type: string; block: Decoded }) {
  const fields = toFields(block);
  const inner = fields[type] ?? fields.source;
  const all = { ...fields, ...(inner ? toFields(inner) : {}) };
  const address = textOf(inner) ?? textOf(all.url);
  const inline = /^data:([^;,]*);base64,/.exec(address?.slice(0, 200) ?? "");
  const encoded =
    textOf(all.data) ??
    textOf(all.base64) ??
    (inline ? address?.slice(inline[0].length) : undefined);
  const bytes = all.data?.kind === "bytes" ? all.data.bytes : encoded && fromBase64(encoded);
  const named = [
    textOf(all.mime_type) ?? textOf(all.mimeType) ?? textOf(all.media_type) ?? inline?.[1],
    textOf(all.filename) ?? textOf(all.metadata && toFields(all.metadata).filename),
  ];
  return (
    <div class="block">
      <span class="kind">{type.replace(/_.*/, "")}</span>{" "}
      {named
        .filter((each) => each)
        .map((each) => shorten(each as string, 200))
        .join(", ")}
      {bytes ? (
        <Bytes bytes={bytes} />
      ) : address !== undefined ? (
        <span class="leaf"> at {shorten(address, 500)}, not fetched</span>
      ) : (
        <Part name="block" value={block} />
      )}
    </div>
  );
}

function fromBase64(text: string): Uint8Array | undefined {
  try {
    const binary = atob(text.replace(/-/g, "+").replace(/_/g, "/"));
    return Uint8Array.from(binary, (character) => character.charCodeAt(0));
  } catch {
    return undefined;
  }
}

/** What somebody wrote, as it is; what stands between fences of Markdown as code. A long one piece by piece. */
export function Prose({ text }: { text: string }) {
  const [shown, setShown] = useState(charactersAtOnce);
  // Every second part is code, also one whose end is not shown.
  const parts = text.slice(0, shown).split(/^[ \t]*```[^\n]*(?:\n|$)/m);
  return (
    <span class="leaf text">
      {parts.map((part, i) => (i % 2 === 1 ? <pre key={i}>{part}</pre> : part))}
      {text.length > shown && (
        <button type="button" class="quiet" onClick={() => setShown(more(shown))}>
          … {toCount(text.length - shown, "more character")}
        </button>
      )}
    </span>
  );
}
