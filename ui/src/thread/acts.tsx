/** What can be done with a thread. */
import type { Thread } from "checkpointd/client";
import type { Place } from "../place.js";

export function Acts(_: {
  threadId: string;
  thread: Thread | undefined;
  place: Place;
  onChange: () => void;
}) {
  return null;
}
