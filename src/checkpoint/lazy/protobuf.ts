/** A field of a message of Protocol Buffers (protobuf.dev/programming-guides/encoding). */
export interface Field {
  number: number;
  wire: number;
  /** Where it begins, with its number. */
  at: number;
  /** Where its value begins and ends; for a number, its bytes. */
  from: number;
  to: number;
}

/** The fields of the message in these bytes; what `odd` makes is thrown for what is no message. */
export function fieldsOf(bytes: Buffer, from: number, to: number, odd: () => Error): Field[] {
  if (to > bytes.length) throw odd();
  const fields: Field[] = [];
  for (let at = from; at < to; ) {
    const key: Field = { number: 0, wire: 0, at, from: at, to: endOfNumber(bytes, at) };
    const value = numberAt(bytes, key);
    const field: Field = { number: Math.floor(value / 8), wire: value % 8, at, from: key.to, to: key.to };
    if (field.wire === 0) field.to = endOfNumber(bytes, field.from);
    else if (field.wire === 1) field.to += 8;
    else if (field.wire === 5) field.to += 4;
    else if (field.wire === 2) {
      field.from = endOfNumber(bytes, key.to);
      field.to = field.from + numberAt(bytes, { ...field, from: key.to, to: field.from });
    } else throw odd();
    if (field.to > to) throw odd();
    fields.push(field);
    at = field.to;
  }
  return fields;
}

function endOfNumber(bytes: Buffer, at: number): number {
  let end = at;
  while ((bytes[end] ?? 0) >= 128) end += 1;
  return end + 1;
}

/** Exact up to 2^53. */
export function numberAt(bytes: Buffer, { from, to }: Pick<Field, 'from' | 'to'>): number {
  let value = 0;
  for (let at = to - 1; at >= from; at -= 1) value = value * 128 + ((bytes[at] ?? 0) & 127);
  return value;
}

/** Adds a number to a message's bytes, as it is written there: exact up to 2^53. */
export function putNumber(bytes: number[], value: number): void {
  let rest = value;
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) + 128);
  bytes.push(rest);
}

export function encodeNumber(value: number): Buffer {
  const bytes: number[] = [];
  putNumber(bytes, value);
  return Buffer.from(bytes);
}
