import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { PodmanNotes } from './notes.ts';

const LATE_MS = 60_000;

function told(): { words: string[]; tell: (word: string) => () => Promise<void> } {
  const words: string[] = [];
  const tell = (word: string) => async () => {
    await sleep(1);
    words.push(word);
  };
  return { words, tell };
}

it('a note that can wait is written as soon as somebody waits for it', async () => {
  const notes = new PodmanNotes('/nowhere');
  const { words, tell } = told();
  notes.later('one', tell('pause'), LATE_MS);
  await sleep(20);
  expect(words).toEqual([]);
  await notes.written('one');
  expect(words).toEqual(['pause']);
});

it('a note comes after the one before it, which then waits no longer', async () => {
  const notes = new PodmanNotes('/nowhere');
  const { words, tell } = told();
  notes.later('one', tell('pause'), LATE_MS);
  notes.later('one', tell('start'));
  await notes.written('one');
  expect(words).toEqual(['pause', 'start']);
});

it('a note that is not heard keeps nobody waiting, and none after it', async () => {
  const notes = new PodmanNotes('/nowhere');
  const { words, tell } = told();
  notes.later('one', () => Promise.reject(new Error('no')));
  await notes.written('one');
  notes.later('one', tell('start'), 5);
  await sleep(50);
  expect(words).toEqual(['start']);
});
