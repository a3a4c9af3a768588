/** The bugs that are planted into a copy of what is compiled, to see that the checker finds them. */

/** A text that stands exactly once in a compiled file, and what stands there instead. */
export interface Patch {
  /** Below dist/src. */
  file: string;
  text: string;
  instead: string;
}

/** What a bug needs to show itself besides the usual trouble. */
export type Fault = "frozen server" | "skipped statements";

export interface Bug {
  name: string;
  patches: Patch[];
  fault?: Fault;
}

const patch = (file: string, text: string, instead: string): Patch => ({ file, text, instead });

const operations = "server/operation_handlers.js";
const put = "store/put.js";
const putWrites = "store/put_writes.js";
const putExtending = "store/put_extending.js";
const read = "store/read.js";
const tuples = "store/tuples.js";
const leases = "store/leases.js";
const batch = "store/batch.js";
const db = "store/db.js";
const session = "client/client_session.js";
const list = "client/read_list.js";

/** The guard of the row count, which would show some of them earlier. */
const noCount = patch(db, "if (count === rows)\n        return;", "return;");
const storedPut = "await put(request, signal);";

export const bugs: Bug[] = [
  {
    name: "a put is acknowledged before its statement ended",
    patches: [patch(operations, storedPut, "put(request, signal).catch(() => {});")],
  },
  {
    name: "a put swallows the error of its statement",
    patches: [patch(operations, storedPut, "await put(request, signal).catch(() => {});")],
  },
  {
    name: "a putWrites swallows the error of its statement",
    patches: [
      patch(
        operations,
        "await putWrites(request, signal);",
        "await putWrites(request, signal).catch(() => {});",
      ),
    ],
  },
  {
    name: "of a batch of puts the last is dropped",
    patches: [
      noCount,
      patch(
        put,
        "[...requests].sort(compareKeys);",
        "[...requests].sort(compareKeys).slice(0, -1);",
      ),
    ],
  },
  {
    name: "of a batch of putWrites the last is dropped",
    patches: [
      noCount,
      patch(
        putWrites,
        "[...requests]\n    .sort(compareKeys)\n",
        "[...requests].sort(compareKeys).slice(0, requests.length > 1 ? -1 : 1)\n",
      ),
    ],
  },
  {
    name: "the answers of a batch of reads are in another order",
    patches: [patch(read, "tuples.get(i + 1)", "tuples.get(requests.length - i)")],
  },
  {
    name: "the answers of a batch of puts under leases are in another order",
    patches: [
      patch(
        leases,
        "return requests.map(({ threadId, leaseToken }) =>",
        "return [...requests].reverse().map(({ threadId, leaseToken }) =>",
      ),
    ],
  },
  {
    name: "when one of a batch is refused the others count as stored",
    patches: [patch(batch, "await runBatch(run, [call]);", "call.resolve(true);")],
  },
  {
    name: "a lost conflict counts as success",
    patches: [
      patch(
        batch,
        "if (await runAgain(batch, error))\n                return;",
        "if (conflictPause(error, 1) !== undefined) {\n for (const call of batch) call.resolve(true);\n return;\n}",
      ),
    ],
  },
  {
    name: "reads come from a cache",
    patches: [
      patch(
        operations,
        "const tuple = await getTuple(request, signal);",
        `const key = [request.threadId, request.checkpointId].join();
            const cache = (globalThis.cache ??= new Map());
            const tuple = cache.get(key) ?? (await getTuple(request, signal));
            cache.set(key, tuple);
            setTimeout(() => cache.delete(key), 20).unref();`,
      ),
    ],
  },
  {
    name: "a put under a lost lease is acknowledged",
    patches: [
      patch(
        put,
        "if (!(await batch(request, signal)))",
        "if (!(await batch(request, signal)) && false)",
      ),
    ],
  },
  {
    name: "a put under a lost lease is refused and stored",
    patches: [
      patch(
        leases,
        'join lease on lease.thread_id = sent.thread_id collate "C" and lease.token = sent.token',
        "",
      ),
    ],
  },
  {
    name: "a putWrites under a lost lease is acknowledged",
    patches: [
      patch(
        putWrites,
        "if (!(await batch?.(request, signal)))",
        "if (!(await batch?.(request, signal)) && false)",
      ),
    ],
  },
  {
    name: "a claim takes a thread that is held",
    patches: [
      patch(
        leases,
        "where held.expires_at at time zone 'UTC'",
        "where true or held.expires_at at time zone 'UTC'",
      ),
    ],
  },
  {
    name: "a lease that is lost is renewed",
    patches: [
      patch(leases, "and token = $2 and expires_at >", "and $2::text is not null and expires_at >"),
    ],
  },
  {
    name: "a release ends somebody else's lease",
    patches: [
      patch(leases, "thread_id = $1 and token = $2`;", "thread_id = $1 and $2::text is not null`;"),
    ],
  },
  {
    name: "a putWrites that is repeated is stored twice",
    patches: [
      patch(
        putWrites,
        "valuesOf(checkpointWrites, writes)",
        "valuesOf(checkpointWrites, writes).replaceAll('::integer', '::integer + 7 * (select count(*)::int from ' + schema + '.checkpoint_writes where thread_id = $1 and checkpoint_id = $3 and task_id = $4)')",
      ),
    ],
  },
  {
    name: "a putWrites never replaces",
    patches: [patch(putWrites, '? "replace" : "keep"', '? "keep" : "keep"')],
  },
  {
    name: "a putWrites always replaces",
    patches: [patch(putWrites, '? "replace" : "keep"', '? "replace" : "replace"'), noCount],
  },
  {
    name: "of many writes the last is dropped",
    patches: [
      patch(
        putWrites,
        "return [...byIdx.values()].sort((a, b) => a.idx - b.idx);",
        "return [...byIdx.values()].sort((a, b) => a.idx - b.idx).slice(0, Math.max(1, byIdx.size - 1));",
      ),
    ],
  },
  {
    name: "of many blobs only eight are stored",
    patches: [
      patch(
        put,
        "[...request.blobs].sort(compareChannels).map((part) =>",
        "[...request.blobs].sort(compareChannels).slice(0, 8).map((part) =>",
      ),
    ],
  },
  {
    name: "a put stores its checkpoint and no blobs",
    patches: [
      patch(put, "const blobs = [...request.blobs].sort(compareChannels);", "const blobs = [];"),
    ],
  },
  {
    name: "a deleted thread keeps its writes",
    patches: [
      patch(
        "store/delete_thread.js",
        "checkpoint_writes where thread_id = $1)",
        "checkpoint_writes where thread_id = $1 and false)",
      ),
    ],
  },
  {
    name: "a thread is deleted in two steps",
    patches: [
      patch(
        "store/delete_thread.js",
        "await db.run(statement(db.schema), [threadId], signal);",
        `await db.run(\`delete from \${db.schema}.checkpoints where thread_id = $1 and checkpoint_id <
      (select max(checkpoint_id) from \${db.schema}.checkpoints where thread_id = $1)\`, [threadId], signal);
    await new Promise((resolve) => setTimeout(resolve, 30));
    await db.run(statement(db.schema), [threadId], signal);`,
      ),
    ],
  },
  {
    name: "a put is carried out again after its answer",
    patches: [
      patch(
        operations,
        storedPut,
        `${storedPut}\n            setTimeout(() => put(request).catch(() => {}), 250);`,
      ),
    ],
  },
  {
    name: "the latest is now and then the one before",
    patches: [
      patch(
        read,
        'order by c.checkpoint_id collate "C" desc`}\n    limit 1',
        'order by c.checkpoint_id collate "C" desc offset (random() < 0.05)::int`}\n    limit 1',
      ),
    ],
  },
  {
    name: "a list leaves out the first of its last page",
    patches: [
      patch(
        list,
        "if (nextMaxTuples === 0) {",
        "if (nextMaxTuples === 0) {\n            if (pages > 1) tuples.shift();",
      ),
    ],
  },
  {
    name: "a list repeats the last of each page",
    patches: [
      patch(list, "list.after = last.key;", "list.after = tuples.at(-2)?.key ?? last.key;"),
    ],
  },
  {
    name: "a session answers well what failed",
    patches: [
      patch(
        "server/session.js",
        'result = { case: "error", value: toOperationError(answer) };',
        'result = operation.case === "put" ? { case: "put", value: {} } : { case: "error", value: toOperationError(answer) };',
      ),
    ],
  },
  {
    name: "an agent takes a session that broke for an answer",
    patches: [
      patch(
        session,
        "            else\n                pending.reject(error);\n        }\n        for",
        "            else\n                pending.resolve({});\n        }\n        for",
      ),
    ],
  },
  {
    name: "an agent takes a deadline for an answer",
    patches: [
      patch(
        session,
        "this.#giveUp(pending, deadlineExceeded());",
        "pending.resolve({}), this.#giveUp(pending, deadlineExceeded());",
      ),
    ],
  },
  {
    name: "an agent heeds no deadline",
    fault: "frozen server",
    patches: [patch(session, "if (now > deadline && !isArriving)", "if (false)")],
  },
  {
    name: "a value that is extended lacks a byte",
    patches: [patch(putExtending, "for prefix_length)", "for prefix_length - 1)")],
  },
  {
    name: "a value that is extended has its head behind what is kept",
    patches: [patch(putExtending, "from head_length + 1 for 0)", "from 1 for 0)")],
  },
  {
    name: "a value is extended whatever is stored now",
    patches: [
      patch(
        putExtending,
        "and stored.xmin = sent.prefix_transaction_id::xid",
        "and sent.prefix_transaction_id is not null",
      ),
    ],
  },
  {
    name: "a checkpoint is read with its parent's writes",
    patches: [
      patch(
        tuples,
        "and w.checkpoint_id = page.checkpoint_id",
        "and w.checkpoint_id = page.parent_checkpoint_id",
      ),
    ],
  },
  {
    name: "an answer without CommandComplete counts as success",
    fault: "skipped statements",
    patches: [
      patch("store/connection.js", 'if (typeof result.command !== "string")', "if (false)"),
      noCount,
    ],
  },
];
