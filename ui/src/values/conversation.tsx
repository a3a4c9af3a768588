/** Messages as a conversation: who says what, what tools were asked and what they answered. */
import { type Decoded, type DecodedMessage, type Json, partsOfValue } from "checkpointd/client";
import { useState } from "preact/hooks";
import { shorten, toCount } from "../words.js";
import { Block, Prose, toFields } from "./blocks.js";
import { toText } from "./text.js";
import { Value } from "./value.js";

/** The last of a long conversation, until earlier ones are asked for. */
const messagesAtOnce = 40;

export function Conversation({ messages }: { messages: readonly Decoded[] }) {
  const [shown, setShown] = useState(messagesAtOnce);
  const hidden = Math.max(0, messages.length - shown);
  return (
    <div class="conversation">
      {hidden > 0 && (
        <button type="button" class="quiet" onClick={() => setShown(shown + 4 * messagesAtOnce)}>
          {toCount(hidden, "earlier message")}
        </button>
      )}
      <ol start={hidden + 1}>
        {messages.slice(hidden).map((message, i) => (
          <li key={hidden + i}>
            {message.kind === "message" ? (
              <Message message={message} />
            ) : (
              <div class="message other">
                <Value value={message} />
              </div>
            )}
          </li>
        ))}
      </ol>
    </div>
  );
}

const names: Record<string, string> = {
  human: "Human",
  ai: "AI",
  system: "System",
  tool: "Tool",
  function: "Function",
  developer: "Developer",
};

/** What somebody said. */
export function Message({ message }: { message: DecodedMessage }) {
  const { role, text, name, toolCalls, toolCallId } = message;
  const blocks = blocksOf(message);
  const failed = message.fields.some(
    ([key, value]) => key === "status" && value.kind === "json" && value.value === "error",
  );
  const wrongCalls = fieldOf(message, "invalid_tool_calls");
  const fields = message.fields.filter(
    ([key, value]) => !isEmpty(value) && key !== blocks?.field && key !== "invalid_tool_calls",
  );
  const answer = role === "tool" ? toJson(text) : undefined;
  const own = Object.hasOwn(names, role) ? role : "other";
  return (
    <article class={`message ${own}`}>
      <header>
        <span class="role">{Object.hasOwn(names, role) ? names[role] : role}</span>
        {name !== undefined && <span class="who">{name}</span>}
        {toolCallId !== undefined && <span class="call">answers {toolCallId}</span>}
        {failed && <span class="tag removed">error</span>}
      </header>
      {role === "remove" ? (
        <span class="leaf none">
          removes {message.id === "__remove_all__" ? "all messages" : `the message ${message.id}`}
        </span>
      ) : blocks ? (
        blocks.items.map((block, i) => <Block block={block} calls={toolCalls} key={i} />)
      ) : answer ? (
        <Value value={answer} />
      ) : text !== "" ? (
        <Prose text={text} />
      ) : (
        toolCalls.length === 0 && !wrongCalls && <span class="leaf none">no text</span>
      )}
      {toolCalls.map((call, i) => (
        <div class="tool-call" key={i}>
          <span>
            calls <strong>{call.name}</strong>
            {call.id !== undefined && <span class="call">{call.id}</span>}
          </span>
          <Value value={call.args} />
        </div>
      ))}
      {wrongCalls && <WrongCalls calls={wrongCalls} />}
      {fields.length > 0 && <More fields={fields} id={message.id} />}
    </article>
  );
}

/** Content in blocks, and the field that has it. */
function blocksOf(message: DecodedMessage): { field: string; items: Decoded[] } | undefined {
  for (const field of ["content_blocks", "content"]) {
    const value = fieldOf(message, field);
    const parts = value && partsOfValue(value);
    if (parts?.isList) return { field, items: [...parts.parts.values()] };
  }
  return undefined;
}

/** What a message has under that name, unless that is empty. */
const fieldOf = ({ fields }: DecodedMessage, name: string) =>
  fields.find(([key, value]) => key === name && !isEmpty(value))?.[1];

/** Calls that a model wrote so that nobody could read them. */
function WrongCalls({ calls }: { calls: Decoded }) {
  return [...(partsOfValue(calls)?.parts.values() ?? [])].map((call, i) => {
    const { name, error, ...rest } = toFields(call);
    return (
      <div class="tool-call wrong" key={i}>
        <span>
          calls <strong>{name ? shorten(toText(name), 200) : "a tool"}</strong>{" "}
          <span class="tag removed">wrongly</span>
          {error && !isEmpty(error) && <span class="call">{shorten(toText(error), 500)}</span>}
        </span>
        {rest.args && <Value value={rest.args} />}
      </div>
    );
  });
}

/** What serializers write of every message, whether it has any of it or not. */
const isEmpty = (value: Decoded) =>
  value.kind === "none" ||
  (value.kind === "json" &&
    (value.value === null ||
      (typeof value.value === "object" && Object.keys(value.value).length === 0)));

/** What a tool answered, where that is JSON, as most tools answer. */
function toJson(text: string): Decoded | undefined {
  if (!/^\s*[[{]/.test(text) || text.length > 100_000) return undefined;
  try {
    return { kind: "json", value: JSON.parse(text) as Json };
  } catch {
    return undefined;
  }
}

/** Everything else that a message has, which is rarely looked at. */
function More(props: { fields: [key: string, value: Decoded][]; id: string | undefined }) {
  const [isOpen, setOpen] = useState(false);
  const id: [string, Decoded][] =
    props.id === undefined ? [] : [["id", { kind: "json", value: props.id }]];
  return (
    <details class="more" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>more of it</summary>
      {isOpen && <Value value={{ kind: "object", fields: [...id, ...props.fields] }} />}
    </details>
  );
}
