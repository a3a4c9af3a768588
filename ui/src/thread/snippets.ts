/** What reads this checkpoint, or resumes or forks from it, to be pasted elsewhere. */
import { baseUrl, hasKey } from "../service.js";

export interface CheckpointName {
  threadId: string;
  ns: string;
  checkpointId: string;
}

/** In single quotes, as a shell takes it for one word whatever is in it. */
const shellWord = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;

const isBelowPath = new URL(baseUrl).pathname !== "/";

export const snippets: { label: string; toText: (name: CheckpointName) => string }[] = [
  {
    label: isBelowPath ? "curl" : "grpcurl",
    toText({ threadId, ns, checkpointId }) {
      const { protocol, hostname, port } = new URL(baseUrl);
      const isTls = protocol === "https:";
      const request = JSON.stringify({
        thread_id: threadId,
        ...(ns === "" ? {} : { checkpoint_ns: ns }),
        checkpoint_id: checkpointId,
      });
      const flags = [
        ...(isTls ? [] : ["-plaintext"]),
        ...(hasKey() ? [`-H "authorization: Bearer $(cat key)"`] : []),
      ];
      // gRPC knows no path before the service's name; Connect's calls are plain requests.
      if (isBelowPath) {
        const key = hasKey() ? ` -H "authorization: Bearer $(cat key)"` : "";
        return `curl -H 'content-type: application/json'${key} -d ${shellWord(request)} \\
  ${baseUrl}/checkpointd.v1.CheckpointService/GetTuple`;
      }
      return `grpcurl ${flags.map((flag) => `${flag} `).join("")}-d ${shellWord(request)} \\
  ${hostname}:${port || (isTls ? "443" : "80")} checkpointd.v1.CheckpointService/GetTuple`;
    },
  },
  {
    label: "TypeScript",
    toText: (name) => `import { Command } from "@langchain/langgraph";
import { ConnectSaver } from "checkpointd";

const checkpointer = ConnectSaver.fromUrl(${JSON.stringify(baseUrl)}${hasKey() ? ", { token }" : ""});
const graph = builder.compile({ checkpointer });
const config = {
  configurable: ${configOf(name)},
};
await graph.getState(config); // look
await graph.invoke(null, config); // run on from exactly here
await graph.invoke(new Command({ resume: "yes" }), config); // answer what it asks
await graph.invoke(null, await graph.updateState(config, {/* other values */})); // fork`,
  },
  {
    label: "Python",
    toText: (name) => `from checkpointd import ConnectSaver
from langgraph.types import Command

checkpointer = ConnectSaver(${JSON.stringify(baseUrl)}${hasKey() ? ", token=token" : ""})
graph = builder.compile(checkpointer=checkpointer)
config = {
    "configurable": ${configOf(name)},
}
graph.get_state(config)  # look
graph.invoke(None, config)  # run on from exactly here
graph.invoke(Command(resume="yes"), config)  # answer what it asks
graph.invoke(None, graph.update_state(config, {}))  # fork, with other values`,
  },
];

/** JSON, which both languages read alike. */
const configOf = ({ threadId, ns, checkpointId }: CheckpointName) =>
  JSON.stringify({ thread_id: threadId, checkpoint_ns: ns, checkpoint_id: checkpointId })
    .replaceAll('":"', '": "')
    .replaceAll('","', '", "');
