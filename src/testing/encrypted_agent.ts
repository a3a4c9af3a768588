/**
 * An agent in JavaScript that encrypts, for Python's tests: `encrypted_agent.js URL KEYS` obeys a line of
 * JSON on standard input each, and answers with one. KEYS are JSON: the ids of the keys and their bytes
 * in hexadecimal, that of the id "current" being the id of the current one.
 */
import { createInterface } from "node:readline";
import { MemorySaver } from "@langchain/langgraph";
import {
  type CheckpointMetadata,
  emptyCheckpoint,
  type SerializerProtocol,
} from "@langchain/langgraph-checkpoint";
import { decodeValue } from "../client/decode_value.js";
import { ConnectSaver, keyring } from "../index.js";

const [url = "", keys = "{}"] = process.argv.slice(2);
const { current, ...known } = JSON.parse(keys) as Record<string, string>;
const json = new MemorySaver().serde;

/** LangGraph's, and of Python's msgpack what can be shown. */
const serde: SerializerProtocol = {
  dumpsTyped: (value) => json.dumpsTyped(value),
  async loadsTyped(type, data) {
    if (type === "json" || typeof data === "string") return json.loadsTyped(type, data);
    const decoded = decodeValue({ type, data });
    return decoded.kind === "json" ? decoded.value : decoded;
  },
};
const saver = ConnectSaver.fromUrl(url, {
  serde,
  encryption: {
    keys: keyring(
      current ?? "",
      Object.fromEntries(Object.entries(known).map(([id, hex]) => [id, Buffer.from(hex, "hex")])),
    ),
  },
});

interface Order {
  config: { configurable: Record<string, string> };
  /** Stores a checkpoint after what is read, with these values in place of those of the channels. */
  values?: Record<string, unknown>;
  writes?: [string, unknown][];
  /** The channels whose history is told. */
  history?: string[];
}

async function obey({ config, values, writes, history }: Order): Promise<unknown> {
  if (writes) return saver.putWrites(config, writes, "js task", "~js");
  if (history) return saver.getDeltaChannelHistory({ config, channels: history });
  if (!values) {
    const tuple = await saver.getTuple(config);
    return tuple && { ...tuple.checkpoint, metadata: tuple.metadata, writes: tuple.pendingWrites };
  }
  const before = await saver.getTuple(config);
  const base = before?.checkpoint ?? emptyCheckpoint();
  const newVersions = Object.fromEntries(
    Object.keys(values).map((name) => [
      name,
      saver.getNextVersion(base.channel_versions[name] as number | undefined),
    ]),
  );
  const { id, ts } = emptyCheckpoint();
  const checkpoint = {
    ...base,
    id,
    ts,
    channel_values: { ...base.channel_values, ...values },
    channel_versions: { ...base.channel_versions, ...newVersions },
  };
  const metadata: CheckpointMetadata = { source: "loop", step: 1, parents: {} };
  return saver.put(before?.config ?? config, checkpoint, metadata, newVersions);
}

for await (const line of createInterface({ input: process.stdin })) {
  const told = await obey(JSON.parse(line)).then(
    (result) => ({ result: result ?? null }),
    (error) => ({ error: error.name, reason: error.reason, message: error.message }),
  );
  process.stdout.write(`${JSON.stringify(told)}\n`);
}
await saver.end();
