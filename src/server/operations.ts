import type {
  DeleteThreadRequest,
  DeleteThreadResponse,
  GetTupleRequest,
  GetTupleResponse,
  PutRequest,
  PutResponse,
  PutWritesRequest,
  PutWritesResponse,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type {
  ListPageRequest,
  ListPageResponse,
  PutExtendingRequest,
  PutExtendingResponse,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import type { Db, Signal } from "../store/db.js";
import { deleteThread } from "../store/delete_thread.js";
import { listPage } from "../store/list.js";
import { createPut } from "../store/put.js";
import { createPutExtending } from "../store/put_extending.js";
import { createPutWrites } from "../store/put_writes.js";
import { createGetTuple } from "../store/read.js";
import {
  checkDeleteThread,
  checkGetTuple,
  checkListPage,
  checkPut,
  checkPutExtending,
  checkPutWrites,
} from "./checks.js";

type Init<T extends { $typeName: string }> = Omit<T, "$typeName" | "$unknown">;

/** The operations of a session; all but listPage and putExtending are unary calls as well. */
export interface Operations {
  getTuple(request: GetTupleRequest, signal: Signal): Promise<Init<GetTupleResponse>>;
  put(request: PutRequest, signal: Signal): Promise<Init<PutResponse>>;
  putWrites(request: PutWritesRequest, signal: Signal): Promise<Init<PutWritesResponse>>;
  deleteThread(request: DeleteThreadRequest, signal: Signal): Promise<Init<DeleteThreadResponse>>;
  listPage(request: ListPageRequest, signal: Signal): Promise<Init<ListPageResponse>>;
  putExtending(request: PutExtendingRequest, signal: Signal): Promise<Init<PutExtendingResponse>>;
}

/**
 * Each is: check the request, run it, answer. Errors rise to who carries the operation.
 * `maxMessageSize` also holds for what a request stands for when it is not sent in full.
 */
export function createOperations(db: Db, maxMessageSize: number): Operations {
  const getTuple = createGetTuple(db);
  const put = createPut(db);
  const putExtending = createPutExtending(db);
  const putWrites = createPutWrites(db);
  return {
    async getTuple(request, signal) {
      checkGetTuple(request);
      const tuple = await getTuple(request, signal);
      return tuple ? { tuple } : {};
    },
    async put(request, signal) {
      checkPut(request);
      await put(request, signal);
      return {};
    },
    async putWrites(request, signal) {
      checkPutWrites(request);
      await putWrites(request, signal);
      return {};
    },
    async deleteThread(request, signal) {
      checkDeleteThread(request);
      await deleteThread(db, request.threadId, signal);
      return {};
    },
    async listPage(request, signal) {
      const list = checkListPage(request);
      const { maxTuples, afterCheckpointJson: checkpointJson } = request;
      const last =
        list.after && checkpointJson !== "" ? { key: list.after, checkpointJson } : undefined;
      return listPage(db, list, maxTuples, last, signal);
    },
    async putExtending(request, signal) {
      const put = checkPutExtending(request, maxMessageSize);
      return { transactionId: await putExtending({ put, prefixes: request.prefixes }, signal) };
    },
  };
}
