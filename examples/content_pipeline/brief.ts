/**
 * The demo's input: the brief of a product launch as a brand team writes it, the scenes its film
 * may use, and what humans answer. Nothing depends on a clock, a random number or a model.
 */

/** A point in time. LangGraph's JSON serde stores a `Date` as its ISO text, with any saver. */
export type Instant = Date | string;

/** One shot of the film: what is seen, what is said over it, and the colour it is graded to. */
export interface Scene {
  id: string;
  title: string;
  shot: string;
  caption: string;
  /** Red, green, blue. */
  colour: Uint8Array;
}

/** What the team knows before the first draft. */
export interface Brief {
  product: string;
  audience: string;
  promise: string;
  price: string;
  launchAt: Instant;
  /** Facts that copy may state as numbers. */
  facts: Map<string, string>;
  /** Where it is published, and how many days before the launch. */
  channels: { name: string; daysBefore: number; format: { ratio: string; seconds: number } }[];
  neverSay: string[];
  scenes: Scene[];
}

/** What a human answers to the interrupt. `leadWith` is the scene the film shall open with. */
export interface Decision {
  verdict: "approve" | "revise";
  by: string;
  note: string;
  leadWith?: string;
}

const scene = (
  id: string,
  title: string,
  shot: string,
  caption: string,
  colour: number[],
): Scene => ({
  id,
  title,
  shot,
  caption,
  colour: new Uint8Array(colour),
});

/** Builds the brief of the Hearth Mini launch; every call returns an equal, separate value. */
export function createBrief(): Brief {
  return {
    product: "Hearth Mini",
    audience: "weekend bakers in small kitchens",
    promise: "a bakery crust from any wall socket",
    price: "349 EUR",
    launchAt: new Date("2026-03-12T09:00:00.000Z"),
    facts: new Map([
      ["heat", "290 °C stone in 18 minutes"],
      ["steam", "80 ml of water, 40 seconds of steam"],
      ["footprint", "36 × 31 cm, the size of a microwave"],
      ["repair", "every part replaceable with one screwdriver for 10 years"],
    ]),
    channels: [
      { name: "newsletter", daysBefore: 14, format: { ratio: "3:2", seconds: 0 } },
      { name: "short film", daysBefore: 7, format: { ratio: "9:16", seconds: 38 } },
      { name: "landing page", daysBefore: 0, format: { ratio: "16:9", seconds: 12 } },
    ],
    neverSay: ["revolutionary", "game-changing", "like your grandmother"],
    scenes: [
      scene(
        "cold-kitchen",
        "The cold kitchen",
        "Saturday, 6:40. Grey light on a narrow counter, a bowl of dough under a damp linen cloth.",
        "Your dough had all night. Your kitchen has 60 centimetres of counter.",
        [0, 62, 79],
      ),
      scene(
        "stone",
        "The stone",
        "Close on the dial turning to 290; behind the glass the stone goes from grey to ember.",
        "290 °C in 18 minutes. From the socket the kettle uses.",
        [214, 84, 28],
      ),
      scene(
        "steam",
        "Eighty millilitres",
        "A small brass cup tips, the glass fogs from the bottom up, the loaf vanishes in white.",
        "80 ml of water. Forty seconds of steam. That is the whole secret of the crust.",
        [226, 232, 240],
      ),
      scene(
        "crust",
        "The loaf sings",
        "Macro: the crust cools and crackles, no music, only the sound of the bread.",
        "Listen.",
        [168, 101, 42],
      ),
      scene(
        "table",
        "Two flats, one loaf",
        "The neighbour from the third floor holds out a plate; butter melts into the crumb.",
        "One loaf is enough for two doors.",
        [255, 206, 120],
      ),
      scene(
        "screwdriver",
        "One screwdriver",
        "The back panel comes off with four screws; a hand lays a new heating element in place.",
        "Every part, one screwdriver, ten years.",
        [74, 85, 104],
      ),
    ],
  };
}

/** The first answer: it sends the campaign back. */
export const revise: Decision = {
  verdict: "revise",
  by: "Marta Lindqvist, brand",
  note: "The crust is lovely, but nobody else repairs ovens. Open with the screwdriver.",
  leadWith: "screwdriver",
};
/** The second answer. */
export const approve: Decision = {
  verdict: "approve",
  by: "Marta Lindqvist, brand",
  note: "This is the one. Go.",
};
/** Another answer to the first question, given in a fork. */
export const whatIf: Decision = {
  verdict: "approve",
  by: "Jonas Weber, sales",
  note: "Draft 3 was good enough. Ship it as it was.",
};
