/** What reads this checkpoint, or goes on from it, to be pasted elsewhere. */
import { baseUrl, hasKey } from "../service.js";

/** Where code starts from. */
export interface Start {
  threadId: string;
  ns: string;
  checkpointId: string;
  /** Whether that is the thread's latest: LangGraph goes on from there when it is given no id. */
  isLatest: boolean;
  /** The name that the thread's savers have: without it what is stored next has none. */
  graph: string | undefined;
  /** Of the questions that wait for an answer there. */
  interruptIds: string[];
}

/** What the code does. */
export const purposes = {
  look: "Look",
  resume: "Run on",
  answer: "Answer",
  fork: "Fork",
} as const;
export type Purpose = keyof typeof purposes;

/** In single quotes, as a shell takes it for one word whatever is in it. */
const shellWord = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;

/**
 * A text as JSON, JavaScript and Python write it alike. What would turn or hide the code around it is
 * escaped.
 */
const quote = (text: string) =>
  JSON.stringify(text).replace(
    /[\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );

/** Tasks of a step that is gone on from by its id are all run, those that ended well before too. */
const startOf = (start: Start, purpose: Purpose): [string, string][] => [
  ["thread_id", start.threadId],
  ["checkpoint_ns", start.ns],
  ...(start.checkpointId === "" ||
  (start.isLatest && (purpose === "resume" || purpose === "answer"))
    ? []
    : [["checkpoint_id", start.checkpointId] as [string, string]]),
];

const objectOf = (fields: [string, string][]) =>
  `{${fields.map(([name, value]) => `${quote(name)}: ${quote(value)}`).join(", ")}}`;

const answerTo = ({ interruptIds }: Start) =>
  interruptIds.length > 1 && interruptIds.every((id) => id !== "")
    ? objectOf(interruptIds.map((id) => [id, "yes"]))
    : quote("yes");

const isBelowPath = new URL(baseUrl).pathname !== "/";

/** The languages, and whether a graph can be run in them. */
export const snippets: {
  label: string;
  hasGraph: boolean;
  toText: (start: Start, purpose: Purpose) => string;
}[] = [
  {
    label: isBelowPath ? "curl" : "grpcurl",
    hasGraph: false,
    toText(start) {
      const { protocol, hostname, port } = new URL(baseUrl);
      const isTls = protocol === "https:";
      const fields = startOf(start, "look").filter(([, value]) => value !== "");
      const flags = [
        ...(isTls ? [] : ["-plaintext"]),
        ...(hasKey() ? [`-H "authorization: Bearer $CHECKPOINTD_TOKEN"`] : []),
      ];
      const request = shellWord(objectOf(fields));
      // gRPC knows no path before the service's name; Connect's calls are plain requests.
      if (isBelowPath) {
        const key = hasKey() ? ` -H "authorization: Bearer $CHECKPOINTD_TOKEN"` : "";
        return `curl -H 'content-type: application/json'${key} -d ${request} \\
  ${shellWord(`${baseUrl}/checkpointd.v1.CheckpointService/GetTuple`)}`;
      }
      return `grpcurl ${flags.map((flag) => `${flag} `).join("")}-d ${request} \\
  ${hostname}:${port || (isTls ? "443" : "80")} checkpointd.v1.CheckpointService/GetTuple`;
    },
  },
  {
    label: "TypeScript",
    hasGraph: true,
    toText(start, purpose) {
      const options = [
        ...(start.graph === undefined ? [] : [`graph: ${quote(start.graph)}`]),
        ...(hasKey() ? ["token: process.env.CHECKPOINTD_TOKEN"] : []),
      ];
      const url = `${quote(baseUrl)}${options.length > 0 ? `, { ${options.join(", ")} }` : ""}`;
      const does = {
        look: "console.log(await graph.getState(config));",
        resume: "await graph.invoke(null, config);",
        answer: `await graph.invoke(new Command({ resume: ${answerTo(start)} }), config);`,
        fork: `const fork = await graph.updateState(config, { /* what is to be other */ });
await graph.invoke(null, fork);`,
      };
      return `${purpose === "answer" ? 'import { Command } from "@langchain/langgraph";\n' : ""}import { ConnectSaver } from "checkpointd";

const checkpointer = ConnectSaver.fromUrl(${url});
const graph = builder.compile({ checkpointer }); // builder: your StateGraph
const config = {
  configurable: ${objectOf(startOf(start, purpose))},
};
${does[purpose]}
await checkpointer.end();`;
    },
  },
  {
    label: "Python",
    hasGraph: true,
    toText(start, purpose) {
      const url = [
        quote(baseUrl),
        ...(start.graph === undefined ? [] : [`graph=${quote(start.graph)}`]),
        ...(hasKey() ? ['token=os.environ["CHECKPOINTD_TOKEN"]'] : []),
      ].join(", ");
      const does = {
        look: "print(graph.get_state(config))",
        resume: "graph.invoke(None, config)",
        answer: `graph.invoke(Command(resume=${answerTo(start)}), config)`,
        fork: `fork = graph.update_state(config, {})  # what is to be other
graph.invoke(None, fork)`,
      };
      return `${hasKey() ? "import os\n\n" : ""}from checkpointd import ConnectSaver
${purpose === "answer" ? "from langgraph.types import Command\n" : ""}
checkpointer = ConnectSaver(${url})
graph = builder.compile(checkpointer=checkpointer)  # builder: your StateGraph
config = {
    "configurable": ${objectOf(startOf(start, purpose))},
}
${does[purpose]}`;
    },
  },
];
