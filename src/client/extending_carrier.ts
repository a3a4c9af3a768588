/** Puts with as few bytes as they take. */
import { create } from "@bufbuild/protobuf";
import { PutResponseSchema } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { type Carrier, NotCarried } from "./carrier.js";
import { errorDetail } from "./retry.js";
import { ValueCache } from "./value_cache.js";

/**
 * Carries all as `carrier` does, but of a put whose values have most of ones that were put before
 * only the rest, where the carrier has the operation for it. Up to `cacheBytes` of the
 * values put last are remembered; zero changes nothing.
 */
export function extendPuts(carrier: Carrier, cacheBytes: number): Carrier {
  const cache = new ValueCache(cacheBytes);
  return {
    ...carrier,
    async put(request, context) {
      while (cache.concerns(request)) {
        const extending = cache.extend(request);
        try {
          const { transactionId } = await carrier.putExtending(extending, context);
          cache.remember(request, transactionId);
          return create(PutResponseSchema);
        } catch (error) {
          if (error instanceof NotCarried) break;
          const isNotStored = errorDetail(error)?.reason === "NOT_STORED";
          if (!isNotStored || extending.prefixes.length === 0) throw error;
          cache.forget(request);
        }
      }
      return carrier.put(request, context);
    },
  };
}
