/**
 * How a thread stands, in SQL, from its latest root checkpoint, that checkpoint's writes and the
 * sizes of a few blobs; no value is decoded. Ground truth is LangGraph's `getState(config).tasks`;
 * thread_status.test.ts counts how often the two agree.
 *
 * Two obvious ways fail: "a trigger channel has a value" takes an emptied list of sends, a join
 * that waits for others and a deferred node that has run for work to do; "versions_seen lags
 * behind channel_versions" alone is true of most completed threads.
 */
import { idleType, sealedType } from "../protocol/sealed.js";
import { channelVersions } from "./tuples.js";

/** LangGraph's task id for writes that belong to no task. */
const nullTask = "00000000-0000-0000-0000-000000000000";

/**
 * A lateral subquery with the columns `status` ('completed', 'pending', 'interrupted', 'failed')
 * and `pending_nodes` (text[]), for a relation `t` with thread_id, checkpoint_id and checkpoint
 * of the thread's latest root checkpoint. `thread` is a parameter where there is one thread (see
 * partRows). Relies on the primary keys of checkpoint_blobs and
 * checkpoint_writes.
 */
export const threadStatus = (schema: string, t: string, thread = `${t}.thread_id`) => `(
  select
    case
      when written.failed then 'failed'
      when written.interrupted then 'interrupted'
      when waiting.nodes is not null or written.unapplied then 'pending'
      else 'completed'
    end as status,
    case when written.failed or written.interrupted or waiting.nodes is not null or written.unapplied
      then coalesce(waiting.nodes, '{}') else '{}' end as pending_nodes
  from (
    select array_agg(distinct node.name) as nodes
    from jsonb_each(${channelVersions(`${t}.checkpoint`)}) as version (channel, seen)
    cross join lateral (
      -- A trigger makes a node run when it holds a value. Any other channel does in a graph made
      -- of nodes and channels (Pregel), for the nodes that saw an older version of it.
      select version.channel in ('__start__', '__pregel_tasks')
        or version.channel like 'branch:to:%' or version.channel like 'join:%' as is_trigger
    ) as channel
    left join lateral (
      select b.type, b.blob from ${schema}.checkpoint_blobs b
      where b.thread_id = ${thread} and b.checkpoint_ns = ''
        and b.channel = version.channel and b.version = version.seen #>> '{}'
      limit 1
    ) as stored on true
    cross join lateral (${nodesOf(t)}) as node
    where ${holdsWork(t)}
  ) as waiting
  cross join (
    select
      coalesce(bool_or(w.channel = '__error__'), false) as failed,
      coalesce(bool_or(w.channel = '__interrupt__'), false) as interrupted,
      coalesce(bool_or(
        case when w.task_id = '${nullTask}'
          then w.channel = '__pregel_tasks' or w.channel like 'branch:to:%'
          else w.channel <> '__resume__'
        end
      ), false) as unapplied
    from ${schema}.checkpoint_writes w
    where w.thread_id = ${thread} and w.checkpoint_ns = ''
      and w.checkpoint_id = ${t}.checkpoint_id
  ) as written
)`;

/**
 * Whether the channel holds something to run. JavaScript stores an emptied channel as type
 * `empty`, Python stores no row and keeps primitives (also null) in the JSON. Of an encrypted value
 * the saver tells it by the type.
 */
const holdsWork = (t: string) => `case
      when coalesce(${t}.checkpoint -> 'channel_values' ? version.channel, false) then true
      when coalesce(stored.type, 'empty') in ('empty', '${idleType}') then false
      when stored.type = '${sealedType}' then true
      when version.channel = '__pregel_tasks' then
        octet_length(stored.blob) > case stored.type when 'json' then 2 else 1 end
      -- A longer one is none, and would be read and written out as text to find that.
      when version.channel like 'join:%' then
        octet_length(stored.blob) < 4 * octet_length(version.channel) + 64
          and coalesce((${joinIsFull}), false)
      -- A deferred node that has run leaves this with JavaScript.
      else not (version.channel like 'branch:to:%'
        and stored.blob = convert_to('{"lc":2,"type":"undefined"}', 'UTF8'))
    end`;

/**
 * The nodes that the channel makes run and that have not seen its version; jsonb compares
 * JavaScript's numbers and Python's strings alike. Sends run whatever was seen.
 */
const nodesOf = (t: string) => `
      select case
          when version.channel like 'branch:to:%' then substr(version.channel, 11)
          when version.channel like 'join:%' then regexp_replace(version.channel, '^join:.*:', '')
          else version.channel
        end as name
      where channel.is_trigger and (version.channel = '__pregel_tasks' or not exists (
        select from jsonb_each(${seenVersions(t)}) as seen (node, versions)
        where seen.node not in ('__interrupt__', '__input__')
          and seen.versions -> version.channel >= version.seen
      ))
      union all
      select seen.node
      from jsonb_each(${seenVersions(t)}) as seen (node, versions)
      where not channel.is_trigger and seen.node not in ('__interrupt__', '__input__')
        and seen.versions -> version.channel < version.seen`;

const seenVersions = (t: string) =>
  `case when jsonb_typeof(${t}.checkpoint -> 'versions_seen') = 'object'
      then ${t}.checkpoint -> 'versions_seen' end`;

/**
 * Whether a join (`join:a+b:node`) has heard from all it waits for: its value is the list of
 * those heard, so a full one is as long as the list of all names. JSON: `["a","b"]`, or
 * `[["a","b"],true]` of a deferred one. MessagePack: an extension (15 bytes with its names and
 * lengths) around the names, or that in a list with `true` (0xc3).
 */
const joinIsFull = `
        select case stored.type
          when 'json' then case
            when substring(stored.blob for 2) = '[['
              then substring(stored.blob from greatest(octet_length(stored.blob) - 5, 1)) = ',true]'
                and size.json = size.names + 5
            else size.json = size.names
          end
          when 'msgpack' then case
            when octet_length(stored.blob) = 0 then false
            when get_byte(stored.blob, 0) = 146 then
              get_byte(stored.blob, octet_length(stored.blob) - 1) = 195
                and octet_length(stored.blob) = size.msgpack + 2
            else octet_length(stored.blob) = size.msgpack
          end
        end
        from (select substring(version.channel from '^join:(.*):[^:]*$') as text) as names
        cross join lateral (
          select 15 + sum(octet_length(name) + 1 + (octet_length(name) > 31)::int)::int
            + case when count(*) > 15 then 2 else 0 end as payload
          from unnest(string_to_array(names.text, '+')) as name
        ) as packed
        cross join lateral (
          select
            packed.payload + case
              when packed.payload = 16 then 2
              when packed.payload <= 255 then 3
              else 4
            end as msgpack,
            -- Escaped and not as text, which a value that is no UTF-8 would make fail.
            octet_length(encode(convert_to(names.text, 'UTF8'), 'escape')) as names,
            case when stored.type = 'json' then octet_length(
              translate(encode(stored.blob, 'escape'), '[]"', '')
            ) end as json
        ) as size`;
