/** Messages as a conversation: who says what, what tools were asked and what they answered. */
import type { Decoded, DecodedMessage, Json } from "checkpointd/client";
import { useState } from "preact/hooks";
import { toCount } from "../words.js";
import { Text, Value } from "./value.js";

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
  const fields = message.fields.filter(([, value]) => !isEmpty(value));
  const answer = role === "tool" ? toJson(text) : undefined;
  const own = Object.hasOwn(names, role) ? role : "other";
  return (
    <article class={`message ${own}`}>
      <header>
        <span class="role">{Object.hasOwn(names, role) ? names[role] : role}</span>
        {name !== undefined && <span class="who">{name}</span>}
        {toolCallId !== undefined && <span class="call">answers {toolCallId}</span>}
      </header>
      {answer ? <Value value={answer} /> : text !== "" && <Text text={text} />}
      {text === "" && toolCalls.length === 0 && <span class="leaf none">no text</span>}
      {toolCalls.map((call, i) => (
        <div class="tool-call" key={i}>
          <span>
            calls <strong>{call.name}</strong>
            {call.id !== undefined && <span class="call">{call.id}</span>}
          </span>
          <Value value={call.args} />
        </div>
      ))}
      {fields.length > 0 && <More fields={fields} id={message.id} />}
    </article>
  );
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
