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
import type { Db, Signal } from "../store/db.js";
import { deleteThread } from "../store/delete_thread.js";
import { createPut } from "../store/put.js";
import { createPutWrites } from "../store/put_writes.js";
import { createGetTuple } from "../store/read.js";
import { checkDeleteThread, checkGetTuple, checkPut, checkPutWrites } from "./checks.js";

type Init<T extends { $typeName: string }> = Omit<T, "$typeName" | "$unknown">;

/** The operations that a unary call and a session carry alike. */
export interface Operations {
  getTuple(request: GetTupleRequest, signal: Signal): Promise<Init<GetTupleResponse>>;
  put(request: PutRequest, signal: Signal): Promise<Init<PutResponse>>;
  putWrites(request: PutWritesRequest, signal: Signal): Promise<Init<PutWritesResponse>>;
  deleteThread(request: DeleteThreadRequest, signal: Signal): Promise<Init<DeleteThreadResponse>>;
}

/** Each is: check the request, run it, answer. Errors rise to who carries the operation. */
export function createOperations(db: Db): Operations {
  const getTuple = createGetTuple(db);
  const put = createPut(db);
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
  };
}
