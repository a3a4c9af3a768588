/** Values that a list leaves out, of which it tells the sizes: they are not read. */
import type { ListRequest } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Parameter } from "./db.js";
import { partColumns } from "./tuples.js";

/** Conditions for the values that are left out. */
export interface Omission {
  /** On `partColumns`. */
  ofPart: string;
  /** On `v.key` and `v.bytes`, a channel whose value is in the checkpoint's JSON. */
  ofInlined: string;
}

/** What a request leaves out, if it does; `bind` makes a parameter. */
export function omissionOf(
  { maxValueBytes, onlyValues }: ListRequest,
  bind: (value: Parameter) => string,
): Omission | undefined {
  const ofPart: string[] = [];
  const ofInlined: string[] = [];
  if (maxValueBytes !== undefined) {
    const most = `${bind(maxValueBytes)}::int`;
    ofPart.push(`octet_length(blob) > ${most}`);
    ofInlined.push(`v.bytes > ${most}`);
  }
  if (onlyValues.length > 0) {
    const channels = `${bind(onlyValues.map(({ channel }) => channel))}::text[]`;
    const tasks = `${bind(onlyValues.map(({ taskId }) => taskId))}::text[]`;
    const places = onlyValues.map(({ taskId, idx }) => (taskId === "" ? 0 : idx));
    const values = `select * from unnest(${channels}, ${tasks}, ${bind(places)}::int[])`;
    ofPart.push(`(channel, coalesce(task_id, ''), coalesce(idx, 0)) not in (${values})`);
    ofInlined.push(`(v.key, '', 0) not in (${values})`);
  }
  if (ofPart.length === 0) return undefined;
  return { ofPart: ofPart.join(" or "), ofInlined: ofInlined.join(" or ") };
}

/**
 * The sizes of the values in the JSON that are left out, by channel. Of scalars only texts are: the
 * others are small, and `true` says that a value is stored apart. Printed once, as 20 MB of text take 0.15 s.
 */
export const inlinedOf = ({ ofInlined }: Omission) => `(
      select jsonb_object_agg(v.key, v.bytes)
      from (
        select key, octet_length(value::text) as bytes
        from jsonb_each(
          case when jsonb_typeof(checkpoint -> 'channel_values') = 'object'
            then checkpoint -> 'channel_values' end
        )
        where jsonb_typeof(value) in ('string', 'array', 'object')
        offset 0
      ) as v
      where ${ofInlined}
    )`;

/** The JSON without those of which `inlined` has the sizes. */
export const withoutInlined = `(case when inlined is null then checkpoint
      else jsonb_set(checkpoint, '{channel_values}', (checkpoint -> 'channel_values')
        - array(select jsonb_object_keys(inlined))) end)`;

/**
 * The parts, and those that were in the JSON, with their sizes (`omitted`, the last column) in the place
 * of values; of what was sent none is left out.
 */
export const withOmitted = (parts: string, { ofPart }: Omission) => `
  select n, kind, channel, version, task_id, task_path, idx, type,
    case when omitted is null then blob end as blob, sort_path, sort_key, omitted
  from (
    select part.*, case when kind < 3 and (${ofPart}) then octet_length(blob)::text end as omitted
    from (${parts}
    ) as part
  ) as part
  union all
  select ${partColumns.union({
    n: "n",
    kind: "1",
    channel: "v.key",
    version: "coalesce(channel_versions ->> v.key, '')",
    type: "'json'",
    sort_key: `v.key collate "C"`,
  })}, v.value
  from candidate
  cross join lateral jsonb_each_text(inlined) as v`;
