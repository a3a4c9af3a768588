import { expect, it } from "vitest";
import { createOrder, type Standing } from "./queue.js";

interface Call extends Standing {
  name: string;
}

/** A line, and what each of the sources puts into it. */
function open() {
  const order = createOrder();
  const line: Call[] = [];
  const sources = new Map<string, object>();
  const stand = (names: string) => {
    for (const name of names) {
      const source = sources.get(name) ?? {};
      sources.set(name, source);
      order.stand(line, { name, place: 0 }, source);
    }
  };
  const take = (calls: number) => {
    const taken = line.splice(0, calls);
    for (const call of taken) order.passed(call);
    return taken.map(({ name }) => name).join("");
  };
  return { stand, take };
}

it("gives each source its turn", () => {
  const { stand, take } = open();
  stand("aaaaaabbbc");
  expect(take(10)).toBe("abcabab" + "aaa");
});

it("lets a source that comes late wait for one of each", () => {
  const { stand, take } = open();
  stand("aaaaaaaaaa");
  expect(take(4)).toBe("aaaa");
  stand("bb");
  expect(take(8)).toBe("ababaaaa");
});

it("has no source pay for what it had when nobody waited", () => {
  const { stand, take } = open();
  for (let i = 0; i < 100; i++) {
    stand("a");
    expect(take(1)).toBe("a");
  }
  stand("bbb");
  stand("aaa");
  expect(take(6)).toBe("bababa");
});
