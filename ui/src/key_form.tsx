/** Asks for the key to call with, where the server asks who calls. */
import { useState } from "preact/hooks";

export function KeyForm({ why, onKey }: { why: string; onKey: (key: string) => void }) {
  const [key, setKey] = useState("");
  return (
    <form
      class="card key"
      onSubmit={(event) => {
        event.preventDefault();
        // What a header cannot hold is no key.
        const cleaned = key.trim();
        if (/^[\x21-\x7e]+$/.test(cleaned)) onKey(cleaned);
      }}
    >
      <h1>This server asks for a key</h1>
      <p class="why">{why}</p>
      <label>
        API key or token
        <input
          type="password"
          autocomplete="off"
          value={key}
          onInput={(event) => setKey(event.currentTarget.value)}
          required
          autofocus
        />
      </label>
      <p class="dim">
        It is sent to {location.host} alone, and forgotten when this tab is closed. Where the server
        has a token file, the key is what that file holds.
      </p>
      <button type="submit" class="main">
        Open
      </button>
    </form>
  );
}
