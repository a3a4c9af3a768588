import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { forgetKept } from "./follow.js";
import { KeyForm } from "./key_form.js";
import { Guarded } from "./notice.js";
import { follow, hrefOf, usePlace } from "./place.js";
import { hasKey, isReadOnly, keepKey } from "./service.js";
import { ThreadPage } from "./thread/thread_page.js";
import { forgetStates } from "./thread/tuples.js";
import { forgetSizes } from "./threads/size.js";
import { ThreadsPage } from "./threads/threads_page.js";

function App() {
  const place = usePlace();
  // A key that is wanted: the page is made anew with it.
  const [wanted, setWanted] = useState<string>();
  const [round, setRound] = useState(0);
  const askForKey = (why: string) => {
    keepKey(undefined);
    forgetKept();
    forgetStates();
    forgetSizes();
    setWanted(why);
  };
  // What was clicked may be gone with what it led from: the keys go on at the content, not at the top.
  const where = `${place.thread} ${place.after}`;
  const last = useRef(where);
  useEffect(() => {
    if (last.current === where) return;
    last.current = where;
    const { activeElement } = document;
    if (activeElement && activeElement !== document.body) return;
    document.getElementById("main")?.focus({ preventScroll: true });
  }, [where]);
  return (
    <>
      <a class="skip" href="#main">
        Skip to the content
      </a>
      <header class="bar">
        <a class="mark" href={hrefOf({})} onClick={follow({})}>
          <Mark />
          checkpointd
        </a>
        <span class="where">{location.host}</span>
        {isReadOnly && <span class="tag">read-only</span>}
        {hasKey() && wanted === undefined && (
          <button type="button" class="quiet" onClick={() => askForKey("The key was forgotten.")}>
            Forget the key
          </button>
        )}
      </header>
      <main id="main" tabIndex={-1}>
        {wanted !== undefined ? (
          <KeyForm
            why={wanted}
            onKey={(key) => {
              keepKey(key);
              setWanted(undefined);
              setRound(round + 1);
            }}
          />
        ) : (
          <Guarded of={hrefOf(place)}>
            {place.thread !== undefined ? (
              <ThreadPage
                key={`${round} ${place.thread}`}
                place={{ ...place, thread: place.thread }}
                onKeyWanted={askForKey}
              />
            ) : (
              <ThreadsPage key={round} place={place} onKeyWanted={askForKey} />
            )}
          </Guarded>
        )}
      </main>
    </>
  );
}

const Mark = () => (
  <svg viewBox="0 0 32 32" width="22" height="22" aria-hidden="true" class="logo">
    <path d="M9 5v22M9 17c0-5 14-2 14-9" />
    <circle cx="9" cy="8" r="3.5" />
    <circle cx="9" cy="24" r="3.5" />
    <circle cx="23" cy="7" r="3.5" class="fork" />
  </svg>
);

const root = document.createElement("div");
root.id = "app";
document.body.append(root);
render(<App />, root);
