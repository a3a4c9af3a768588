/**
 * Reads msgpack, as LangGraph's Python serializer writes it (ormsgpack). Of our own because only
 * `decodeValue` reads any: the format is frozen and small, and the well-kept package for it
 * (@msgpack/msgpack) is 660 KB, more than all the rest of what an agent installs of us.
 */

/** An extension: its code, and its bytes, which are a view of the whole. */
export class Extension {
  constructor(
    readonly code: number,
    readonly data: Uint8Array,
  ) {}
}

/** Entries of a map in their order, whatever their keys are. */
export class Entries {
  constructor(readonly entries: readonly (readonly [key: unknown, value: unknown])[]) {}
}

/**
 * The one value that `data` holds: null, boolean, number, bigint (an integer that no double holds),
 * string, Uint8Array, an array, {@link Entries} or {@link Extension}. Throws an Error for bytes that
 * are no msgpack, for bytes after the value, for text that is no UTF-8, and for what is nested more
 * than `maxDepth` levels deep. What it costs is bounded by the number of bytes, whatever they claim.
 */
export function readMsgpack(data: Uint8Array, maxDepth: number): unknown {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let at = 0;

  const take = (length: number): number => {
    const begin = at;
    if (length > data.length - begin) throw new Error("the bytes end within a value");
    at += length;
    return begin;
  };
  const uint = (bytes: 1 | 2 | 4): number => {
    const begin = take(bytes);
    if (bytes === 1) return view.getUint8(begin);
    return bytes === 2 ? view.getUint16(begin) : view.getUint32(begin);
  };
  const narrow = (wide: bigint) => (BigInt.asIntN(54, wide) === wide ? Number(wide) : wide);
  const bytes = (length: number): Uint8Array => {
    const begin = take(length);
    return data.subarray(begin, begin + length);
  };
  const text = (length: number) => utf8.decode(bytes(length));
  const extension = (length: number) => {
    const code = view.getInt8(take(1));
    return new Extension(code, bytes(length));
  };
  // Grown as elements come: a count of four billion in five bytes must not be believed.
  const array = (count: number, depth: number) => {
    const items: unknown[] = [];
    for (let i = 0; i < count; i++) items.push(read(depth + 1));
    return items;
  };
  const map = (count: number, depth: number) => {
    const entries: [unknown, unknown][] = [];
    for (let i = 0; i < count; i++) entries.push([read(depth + 1), read(depth + 1)]);
    return new Entries(entries);
  };

  function read(depth: number): unknown {
    if (depth > maxDepth) throw new Error(`nested more than ${maxDepth} levels deep`);
    const head = uint(1);
    if (head < 0x80) return head;
    if (head < 0x90) return map(head & 0x0f, depth);
    if (head < 0xa0) return array(head & 0x0f, depth);
    if (head < 0xc0) return text(head & 0x1f);
    if (head >= 0xe0) return head - 0x100;
    switch (head) {
      case 0xc0:
        return null;
      case 0xc2:
        return false;
      case 0xc3:
        return true;
      case 0xc4:
        return bytes(uint(1));
      case 0xc5:
        return bytes(uint(2));
      case 0xc6:
        return bytes(uint(4));
      case 0xc7:
        return extension(uint(1));
      case 0xc8:
        return extension(uint(2));
      case 0xc9:
        return extension(uint(4));
      case 0xca:
        return view.getFloat32(take(4));
      case 0xcb:
        return view.getFloat64(take(8));
      case 0xcc:
        return uint(1);
      case 0xcd:
        return uint(2);
      case 0xce:
        return uint(4);
      case 0xcf:
        return narrow(view.getBigUint64(take(8)));
      case 0xd0:
        return view.getInt8(take(1));
      case 0xd1:
        return view.getInt16(take(2));
      case 0xd2:
        return view.getInt32(take(4));
      case 0xd3:
        return narrow(view.getBigInt64(take(8)));
      case 0xd4:
      case 0xd5:
      case 0xd6:
      case 0xd7:
      case 0xd8:
        return extension(2 ** (head - 0xd4));
      case 0xd9:
        return text(uint(1));
      case 0xda:
        return text(uint(2));
      case 0xdb:
        return text(uint(4));
      case 0xdc:
        return array(uint(2), depth);
      case 0xdd:
        return array(uint(4), depth);
      case 0xde:
        return map(uint(2), depth);
      case 0xdf:
        return map(uint(4), depth);
      default:
        throw new Error(`no msgpack begins with the byte ${head}`);
    }
  }

  const value = read(0);
  if (at < data.length) throw new Error("bytes follow the value");
  return value;
}

/** What stands at a place in msgpack, without what is in it. */
export interface MsgpackHead {
  kind: "array" | "map" | "text" | "bytes" | "extension" | "scalar";
  /** Values that follow and belong to it: of an array its items, of a map its keys and values. */
  count: number;
  /** Where what it holds begins. */
  start: number;
  /** Where it ends; of an array or a map where the first value in it begins. */
  end: number;
}

/** How many bytes follow the head of a scalar or hold a length, from 0xc0 on. */
const widths = [
  0, 0, 0, 0, 1, 2, 4, 1, 2, 4, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 0, 0, 0, 0, 0, 1, 2, 4, 2, 4, 2, 4,
];

/** Reads one head. Throws an Error where `data` ends before it, or within what is no array and no map. */
export function walkMsgpack(data: Uint8Array, at: number): MsgpackHead {
  const of = (kind: MsgpackHead["kind"], start: number, length: number, count = 0) => {
    if (start + length > data.length) throw new Error("the bytes end within a value");
    return { kind, count, start, end: start + length };
  };
  const head = data[at];
  if (head === undefined) throw new Error("the bytes end within a value");
  const start = at + 1;
  if (head < 0x80 || head >= 0xe0) return of("scalar", start, 0);
  if (head < 0x90) return of("map", start, 0, 2 * (head & 0x0f));
  if (head < 0xa0) return of("array", start, 0, head & 0x0f);
  if (head < 0xc0) return of("text", start, head & 0x1f);
  const width = widths[head - 0xc0] ?? 0;
  let length = 0;
  for (let i = 0; i < width; i++) length = length * 256 + (data[start + i] ?? 0);
  const inside = start + width;
  if (head === 0xc1) throw new Error(`no msgpack begins with the byte ${head}`);
  if (head >= 0xc4 && head <= 0xc6) return of("bytes", inside, length);
  // Of an extension the code comes first.
  if (head >= 0xc7 && head <= 0xc9) return of("extension", inside + 1, length);
  if (head >= 0xd4 && head <= 0xd8) return of("extension", start + 1, 2 ** (head - 0xd4));
  if (head >= 0xd9 && head <= 0xdb) return of("text", inside, length);
  if (head === 0xdc || head === 0xdd) return of("array", inside, 0, length);
  if (head === 0xde || head === 0xdf) return of("map", inside, 0, 2 * length);
  return of("scalar", inside, 0);
}
