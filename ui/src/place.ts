/** What the page shows, which its address holds: a colleague who opens it sees the same. */
import { useEffect, useState } from "preact/hooks";

/** What may stand in the address. Each is absent rather than empty, but for `ns`, which is the root's. */
export interface Place {
  /** Which threads: words of `status`, separated by commas. */
  status?: string;
  prefix?: string;
  metadata?: string;
  graph?: string;
  /** Updated within: "30m", "12h", "7d". */
  within?: string;
  order?: "id";
  /** "1": how much is stored of each. */
  sizes?: string;
  /** The last thread of the page before: its time in microseconds, a colon, its id. */
  after?: string;
  thread?: string;
  ns?: string;
  checkpoint?: string;
  /** The checkpoint that it is compared with, in the place of its parent. */
  against?: string;
  tab?: string;
}

const names = [
  "status",
  "prefix",
  "metadata",
  "graph",
  "within",
  "order",
  "sizes",
  "after",
  "thread",
  "ns",
  "checkpoint",
  "against",
  "tab",
] as const satisfies readonly (keyof Place)[];

function read(): Place {
  const query = new URLSearchParams(location.search);
  const place: Record<string, string> = {};
  for (const name of names) {
    const value = query.get(name);
    if (value) place[name] = value;
  }
  return place as Place;
}

/** The address of a place, for a link. */
export function hrefOf(place: Place): string {
  const query = new URLSearchParams();
  for (const name of names) if (place[name]) query.set(name, place[name]);
  const text = query.toString();
  return text === "" ? "./" : `?${text}`;
}

const moved = new EventTarget();

// Browsers go back to where one had scrolled before there is anything to see, or not at all.
history.scrollRestoration = "manual";

/** Where one had scrolled in what the address names, until it is there again. */
let wantedTop = topOf(history.state);
let keeping: ReturnType<typeof setTimeout> | undefined;

function topOf(state: unknown): number {
  const top = typeof state === "object" && state !== null && "top" in state ? state.top : 0;
  return typeof top === "number" ? top : 0;
}

function keepTop(): void {
  clearTimeout(keeping);
  if (wantedTop === 0) history.replaceState({ top: scrollY }, "");
}
addEventListener(
  "scroll",
  () => {
    clearTimeout(keeping);
    keeping = setTimeout(keepTop, 100);
  },
  { passive: true },
);
addEventListener("popstate", ({ state }) => {
  clearTimeout(keeping);
  wantedTop = topOf(state);
  scrollTo(0, 0);
});

/** Whether one comes back to a place that had been scrolled, which is to be whole when it is drawn. */
export const isScrolledBack = () => wantedTop > 0;

/** Scrolls to where one had been, now that it is drawn. */
export function scrollBack(): void {
  if (wantedTop > 0) scrollTo(0, wantedTop);
  wantedTop = 0;
}

/** Goes there. `replace` where it is a detail of what is shown, which the back button should not undo. */
export function go(place: Place, replace = false): void {
  if (replace) history.replaceState(history.state, "", hrefOf(place));
  else {
    wantedTop = 0;
    keepTop();
    history.pushState(null, "", hrefOf(place));
    scrollTo(0, 0);
  }
  moved.dispatchEvent(new Event("moved"));
}

/** Where the page is. */
export function usePlace(): Place {
  const [place, setPlace] = useState(read);
  useEffect(() => {
    const look = () => setPlace(read());
    moved.addEventListener("moved", look);
    addEventListener("popstate", look);
    return () => {
      moved.removeEventListener("moved", look);
      removeEventListener("popstate", look);
    };
  }, []);
  return place;
}

/** For a link's click: goes there without loading the page anew, unless another tab is wanted. */
export function follow(place: Place) {
  return (event: MouseEvent) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    go(place);
  };
}
