import { DatabaseSync } from 'node:sqlite';
import { describe, expect, it, vi } from 'vitest';
import { UmsError } from '#src/telemetry/errors.ts';
import { Journal, type NewMigration, newMigrationId } from './journal.ts';
import { migrateOptionsSchema, type MigrationEvent, migrationIdSchema } from './schema.ts';

function migration(overrides: Partial<NewMigration> = {}): NewMigration {
  return {
    id: newMigrationId(),
    role: 'source',
    state: 'planned',
    serviceUid: 'uid-1',
    service: 'web',
    engine: 'podman',
    engineId: 'c1',
    handle: '{}',
    source: 'alpha',
    destination: 'beta',
    options: migrateOptionsSchema.parse({}),
    specification: '{}',
    data: {},
    ...overrides,
  };
}

describe('the journal', () => {
  it('makes ids that the schema of peers accepts', () => {
    for (let i = 0; i < 100; i += 1) expect(() => migrationIdSchema.parse(newMigrationId())).not.toThrow();
  });

  it('waits for the disk only where a power cut must not undo what it wrote', () => {
    const database = new DatabaseSync(':memory:');
    const journal = new Journal(database);
    const { id } = journal.insert(migration({ state: 'copying' }));
    const flushes = vi.spyOn(database, 'exec');
    const modes = () => flushes.mock.calls.map(([sql]) => sql).filter((sql) => sql.startsWith('pragma'));
    for (const [from, to] of [
      ['copying', 'holding'],
      ['holding', 'freezing'],
      ['freezing', 'dumping'],
    ] as const) {
      journal.transition(id, from, to);
    }
    journal.jot(id, { seen: true });
    expect(modes()).toEqual(
      Array.from({ length: 4 }, () => ['normal', 'full'])
        .flat()
        .map((mode) => `pragma synchronous = ${mode}`),
    );
    flushes.mockClear();
    journal.transition(id, 'dumping', 'restoring');
    journal.transition(id, 'restoring', 'committing');
    journal.merge(id, { kept: true });
    expect(modes()).toEqual([]);
    expect(journal.get(id).data).toMatchObject({ seen: true, kept: true });
  });

  it('counts the silence of a peer from the beginning of a migration, not from the start of an agent that runs for days', () => {
    vi.useFakeTimers();
    try {
      const journal = new Journal(new DatabaseSync(':memory:'));
      vi.advanceTimersByTime(48 * 3600 * 1000);
      const { id } = journal.insert(migration({ role: 'destination', state: 'reserving' }));
      expect(journal.silence_ms(id)).toBe(0);
      vi.advanceTimersByTime(2000);
      expect(journal.silence_ms(id)).toBe(2000);
      journal.touch(id);
      expect(journal.silence_ms(id)).toBe(0);
    } finally {
      vi.useRealTimers();
    }
  });

  it('moves only from the state the caller saw', () => {
    const journal = new Journal(new DatabaseSync(':memory:'));
    const { id } = journal.insert(migration());
    expect(journal.transition(id, 'checking', 'reserving')).toBe(false);
    expect(journal.transition(id, 'planned', 'checking')).toBe(true);
    expect(journal.transition(id, 'planned', 'checking')).toBe(false);
    expect(journal.get(id).state).toBe('checking');
  });

  it('refuses a second migration of one service, leaves no trace of it, and allows it after the end', () => {
    const journal = new Journal(new DatabaseSync(':memory:'));
    const { id } = journal.insert(migration());
    expect(() => journal.insert(migration())).toThrow(UmsError);
    expect(journal.all()).toHaveLength(1);
    expect(journal.lockHolder('podman', 'c1')).toBe(id);
    journal.transition(id, 'planned', 'aborting');
    journal.transition(id, 'aborting', 'aborted');
    expect(journal.lockHolder('podman', 'c1')).toBeUndefined();
    expect(() => journal.insert(migration())).not.toThrow();
  });

  it('publishes each event once, in order, and ends with the view', () => {
    const journal = new Journal(new DatabaseSync(':memory:'));
    const { id } = journal.insert(migration());
    const live: MigrationEvent[] = [];
    journal.subscribe(id, (event) => live.push(event));
    journal.transition(id, 'planned', 'aborting');
    journal.emit(id, { event: 'note', text: 'hello' });
    journal.transition(id, 'aborting', 'aborted');
    expect(journal.events(id, 0).map((event) => event.seq)).toEqual([1, 2, 3, 4, 5]);
    expect(live.map((event) => event.seq)).toEqual([2, 3, 4, 5]);
    const last = live.at(-1);
    expect(last?.event === 'ended' && last.migration.state).toBe('aborted');
    expect(last?.event === 'ended' && last.migration.steps.map((step) => step.name)).toEqual(['planned', 'aborting']);
  });

  it('keeps the row and its events for a second opening of the database', () => {
    const database = new DatabaseSync(':memory:');
    const { id } = new Journal(database).insert(migration());
    const again = new Journal(database);
    again.emit(id, { event: 'note', text: 'after a restart' });
    expect(again.events(id, 0).map((event) => event.seq)).toEqual([1, 2]);
    expect(again.unfinished().map((row) => row.id)).toEqual([id]);
  });

  it('knows one service by one uid, wherever it goes', () => {
    const journal = new Journal(new DatabaseSync(':memory:'));
    journal.adoptService('podman', 'old', 'uid', 'h1');
    journal.adoptService('podman', 'new', 'uid', 'h2');
    expect(journal.serviceUid('podman', 'old')).toBeUndefined();
    expect(journal.serviceByUid('uid')).toEqual({ engine: 'podman', engineId: 'new', handle: 'h2' });
  });
});
