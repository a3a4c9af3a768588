import { channelVersions } from "./tuples.js";

/**
 * A condition in SQL: whether a checkpoint holds no value of a delta channel, so that the channel
 * is rebuilt from its parent. `c` has the columns of checkpoints, and is of that thread, a parameter.
 *
 * LangGraph tells only in a metadata's counters_since_delta_snapshot which channels are delta
 * channels without a value here, and keeps it for the checkpoints of its loop; what updateState
 * stores goes without (Pregel.updateState of LangGraph 1.4.17). There each channel without a value may be
 * one, but for those LangGraph makes itself. The condition looks at nothing else than this
 * checkpoint, so what it finds needed stays found when others are removed.
 *
 * Relies on checkpoint_blobs' primary key.
 */
export const rebuildsFromParent = (schema: string, c: string, thread: string) => `exists (
    select from (
      select jsonb_object_keys(
        case when jsonb_typeof(${c}.metadata -> 'counters_since_delta_snapshot') = 'object'
          then ${c}.metadata -> 'counters_since_delta_snapshot' end
      ) as channel
      union all
      select channel from jsonb_object_keys(${channelVersions(`${c}.checkpoint`)}) as channel
      where coalesce(${c}.metadata ->> 'source', '') not in ('input', 'loop')
        and channel !~ '^(__|branch:|join:)'
    ) as delta
    where not coalesce(${c}.checkpoint -> 'channel_values' ? channel, false)
      and not exists (
        select from ${schema}.checkpoint_blobs b
        where b.thread_id = ${thread} and b.checkpoint_ns = ${c}.checkpoint_ns
          and b.channel = delta.channel
          and b.version = ${channelVersions(`${c}.checkpoint`)} ->> delta.channel
          and b.type <> 'empty'
        offset 0
      )
  )`;
