/*
 * The commit protocol of a migration (src/coordination/states.ts), for spin. README.md says how to run it.
 *
 * Two agents with a durable state each (journal) and a volatile one (what they are in the middle of). An agent may be
 * killed between any two steps and starts again from its journal. A host may go down with everything in its memory and
 * come up again with its journal. Messages are bits that anybody may set again or take away: the channel loses,
 * repeats and reorders without bound, also over restarts. Requests before the restore are one state, "early".
 *
 * -DSETTLING_GOES_BACK  the destination, asked to settle a second time, goes back if the service has ended meanwhile
 * -DASKS_BY_GIVING_UP   the source, in the window, asks the destination with give-up instead of telling it again
 * -DTHAWS_IN_WINDOW     the source thaws when it hears nothing in the window
 * -DFORGETS_ABORT       the destination forgets an aborted migration, and takes a late commit for a new one
 * -DSURRENDERS_WHOLE    the destination gives its copy up to an operator's choice though it has all of the memory
 * The five are wrong on purpose: each must be found.
 */
mtype:source = { s_early, s_restoring, s_committing, s_committed, s_filling, s_removing, s_done, s_aborting, s_aborted };
mtype:destination = { d_early, d_restoring, d_restored, d_committing, d_active, d_settling, d_done, d_aborting, d_aborted };
/* A copy: none, frozen with its state, running with its state. */
mtype:copy = { none, frozen, running };
mtype:doing = { idle, starting, resuming, recording, removing, answering };

mtype:source source = s_early;
mtype:destination destination = d_early;
mtype:copy at_source = running;
mtype:copy at_destination = none;

/* Volatile. */
mtype:doing doing = idle;      /* the destination; it serves one request at a time */
bool source_up = true;

/* Messages under way. */
bool m_restore, m_commit, m_give_up, m_settle, m_fill, m_surrender, m_finish;
bool a_restored, a_active, a_settling, a_filled, a_done, a_aborted;

/* Durable at the destination: all memory has arrived and is in the processes. */
bool filled;

/* What happened, for the properties only. */
bool commit_told, source_deleted, source_host_lost, destination_host_lost, service_ended, destination_unfit;
bool said_aborted, said_owned, said_filled, surrendered, cancelled, source_lost_in_window;

/* How often agents are killed altogether. */
#ifndef FAULTS
#define FAULTS 2
#endif
byte crashes = FAULTS;

inline lose(message) { d_step { message -> message = false } }

inline say_aborted() {
  assert(!said_owned || (surrendered && !said_filled));
  said_aborted = true; a_aborted = true
}
inline say_owned() { assert(!said_aborted); said_owned = true }
inline say_filled() { assert(!said_aborted); said_filled = true; a_filled = true }

inline thaw() {
  /* Told to commit, the destination must have said that it does not run the service, and never will. */
  assert(!commit_told || said_aborted);
  assert(at_destination != running);
  at_source = running
}

active proctype Source() {
  end: do
  /* Freeze, dump, and let the destination make the processes. */
  :: atomic { source_up && source == s_early && at_source == running -> at_source = frozen }
  :: atomic { source_up && source == s_early && at_source == frozen -> source = s_restoring }
  :: atomic { source_up && source == s_restoring && !m_restore -> m_restore = true }
  :: atomic { source_up && source == s_restoring && a_restored -> source = s_committing }
  :: atomic { source_up && source == s_restoring && a_aborted -> source = s_aborting }
  /* Anything may fail before the commit, and the user may cancel. A host that lost the memory waits instead. */
  :: atomic { source_up && (source == s_early || source == s_restoring) && !source_host_lost -> source = s_aborting }

  /* The window: tell it again and again. */
#ifdef ASKS_BY_GIVING_UP
  :: atomic { source_up && source == s_committing && commit_told && !m_give_up -> m_give_up = true }
#endif
  :: atomic { source_up && source == s_committing && !m_commit -> m_commit = true; commit_told = true }
  :: atomic { source_up && source == s_committing && !m_give_up -> cancelled = true; m_give_up = true }
  :: atomic { source_up && source == s_committing && (a_active || a_settling || a_done) -> source = s_committed }
  :: atomic { source_up && source == s_committing && a_aborted -> source = s_aborting }
#ifdef THAWS_IN_WINDOW
  :: atomic { source_up && source == s_committing -> source = s_aborting }
#endif

  /* The destination runs it. Before anything is given up here it takes it over for good. */
  :: atomic { source_up && source == s_committed && !m_settle -> m_settle = true }
  :: atomic { source_up && source == s_committed && (a_settling || a_done) -> source = s_filling }
  :: atomic { source_up && source == s_committed && a_aborted -> source = s_aborting }

  /* Memory may still be on its way; an operator may choose the frozen copy as long as it is. */
  :: atomic { source_up && source == s_filling && !m_fill -> m_fill = true }
  :: atomic { source_up && source == s_filling && at_source == frozen && !m_surrender ->
       m_surrender = true }
  :: atomic { source_up && source == s_filling && (a_filled || a_done) -> source = s_removing }
  :: atomic { source_up && source == s_filling && a_aborted -> source = s_aborting }

  :: atomic { source_up && source == s_removing && !source_deleted ->
       assert((destination == d_settling && filled) || destination == d_done);
       source_deleted = true; at_source = none }
  :: atomic { source_up && source == s_removing && source_deleted && !m_finish -> m_finish = true }
  :: atomic { source_up && source == s_removing && source_deleted && a_done -> source = s_done }

  :: atomic { source_up && source == s_aborting && at_source == frozen -> thaw() }
  /* Its memory went with its host: it is started from its files. */
  :: atomic { source_up && source == s_aborting && at_source == none -> thaw() }
  :: atomic { source_up && source == s_aborting && at_source == running -> source = s_aborted }
  :: atomic { source_up && source == s_aborted && !a_aborted && !m_give_up -> m_give_up = true }

  /* Killed at any time; started again from the journal. */
  :: atomic { source_up && crashes > 0 -> crashes--; source_up = false }
  :: atomic { !source_up ->
       source_up = true;
       if
       :: source == s_early -> source = s_aborting
       :: source == s_restoring && !source_host_lost -> source = s_aborting
       :: else
       fi }
  od
}

active proctype Destination() {
  end: do
  /* What it was told, one request at a time. Each may arrive again later. */
  :: atomic { doing == idle && m_restore ->
       if :: m_restore = false :: skip fi;
       if
       :: destination == d_early -> destination = d_restoring; doing = starting
       :: destination == d_restored || destination == d_aborted -> doing = answering
       :: else
       fi }
  :: atomic { doing == idle && m_commit ->
       if :: m_commit = false :: skip fi;
       if
#ifdef FORGETS_ABORT
       :: destination == d_aborted -> destination = d_committing; at_destination = frozen; doing = resuming
#endif
       :: destination == d_restored -> destination = d_committing; doing = resuming
       :: destination == d_committing -> doing = resuming
       :: destination == d_aborting -> doing = removing
       :: destination == d_active || destination == d_settling || destination == d_done || destination == d_aborted ->
            doing = answering
       :: else
       fi }
  :: atomic { doing == idle && m_give_up ->
       if :: m_give_up = false :: skip fi;
       if
       :: destination == d_early || destination == d_restoring || destination == d_restored ->
            destination = d_aborting; doing = removing
       :: destination == d_committing -> doing = resuming
       :: destination == d_aborting -> doing = removing
       :: else -> doing = answering
       fi }
  :: atomic { doing == idle && m_settle ->
       if :: m_settle = false :: skip fi;
       if
       :: destination == d_active && at_destination == running -> destination = d_settling; doing = answering
       :: destination == d_active && at_destination != running -> destination = d_aborting; doing = removing
#ifdef SETTLING_GOES_BACK
       :: destination == d_settling && at_destination != running -> destination = d_aborting; doing = removing
       :: destination == d_settling && at_destination == running -> doing = answering
#else
       :: destination == d_settling -> doing = answering
#endif
       :: destination == d_aborting -> doing = removing
       :: destination == d_done || destination == d_aborted -> doing = answering
       :: else
       fi }
  :: atomic { doing == idle && m_fill ->
       if :: m_fill = false :: skip fi;
       if
       :: destination == d_settling && filled -> say_filled()
       :: else
       fi }
  :: atomic { doing == idle && m_surrender ->
       if :: m_surrender = false :: skip fi;
       if
#ifdef SURRENDERS_WHOLE
       :: destination == d_settling -> surrendered = true; destination = d_aborting; doing = removing
#else
       :: destination == d_settling && !filled -> surrendered = true; destination = d_aborting; doing = removing
#endif
       :: destination == d_aborting -> doing = removing
       :: destination == d_aborted || destination == d_done -> doing = answering
       :: else
       fi }
  /* The last page arrives; for memory that came as images this is at once. */
  :: atomic { doing == idle && destination == d_settling && !filled -> filled = true }
  :: atomic { doing == idle && m_finish ->
       if :: m_finish = false :: skip fi;
       if
       :: destination == d_settling -> destination = d_done; doing = answering
       :: destination == d_done -> doing = answering
       :: else
       fi }

  /* Making the processes, which stay frozen, may fail. */
  :: atomic { doing == starting -> at_destination = frozen; doing = recording }
  :: atomic { doing == starting -> destination = d_aborting; doing = removing }
  /* Running it may fail, and it may prove unfit; then it is removed before anybody is told. */
  :: atomic { doing == resuming && at_destination != none ->
       assert(at_source != running);
       at_destination = running; doing = recording }
  :: atomic { doing == resuming -> destination_unfit = true; destination = d_aborting; doing = removing }
  :: atomic { doing == recording && destination == d_restoring -> destination = d_restored; doing = answering }
  :: atomic { doing == recording && destination == d_committing && at_destination == running ->
       destination = d_active; doing = answering }
  :: atomic { doing == recording && destination == d_committing && at_destination != running ->
       destination = d_aborting; doing = removing }
  :: atomic { doing == removing && destination == d_aborting && at_destination != none ->
       assert(!source_deleted);
       at_destination = none }
  :: atomic { doing == removing && destination == d_aborting && at_destination == none ->
       assert(!source_deleted);
       destination = d_aborted; doing = answering }
  :: atomic { doing == answering ->
       if
       :: destination == d_restored -> a_restored = true
       :: destination == d_active -> a_active = true
       :: destination == d_settling -> say_owned(); a_settling = true
       :: destination == d_done -> say_owned(); a_done = true
       :: destination == d_aborted -> say_aborted()
       :: else
       fi;
       doing = idle }

  /* A lease that ends before the memory has arrived. */
  :: atomic { doing == idle && destination == d_early -> destination = d_aborting; doing = removing }

  /* Killed at any time; recovery finds out from the journal and the engine. */
  :: atomic { crashes > 0 -> crashes--; doing = idle;
       if
       :: destination == d_restoring && at_destination == frozen -> destination = d_restored
       :: destination == d_restoring && at_destination == none -> destination = d_aborting; doing = removing
       :: destination == d_restored && at_destination == none -> destination = d_aborting; doing = removing
       :: destination == d_committing && at_destination != none -> doing = resuming
       :: destination == d_committing && at_destination == none -> destination = d_aborting; doing = removing
       :: destination == d_active && at_destination != running -> destination = d_aborting; doing = removing
       :: destination == d_aborting -> doing = removing
       :: else
       fi }
  od
}

/* The world: the channel loses, hosts go down once each, the service may end by itself where it runs. */
active proctype World() {
  end: do
  :: lose(m_restore) :: lose(m_commit) :: lose(m_give_up) :: lose(m_settle) :: lose(m_fill) :: lose(m_surrender) :: lose(m_finish)
  :: lose(a_restored) :: lose(a_active) :: lose(a_settling) :: lose(a_filled) :: lose(a_done) :: lose(a_aborted)
#ifndef NO_HOST_LOSS
  :: atomic { !source_host_lost ->
       source_host_lost = true; at_source = none; source_up = false;
       source_lost_in_window = (source == s_committing || source == s_committed) }
  :: atomic { !destination_host_lost ->
       destination_host_lost = true; at_destination = none; doing = idle;
       if
       :: destination == d_restoring || destination == d_restored || destination == d_committing ||
          destination == d_active || destination == d_early -> destination = d_aborting
       :: else
       fi;
       if :: destination == d_aborting -> doing = removing :: else fi }
#endif
  :: atomic { !service_ended && at_destination == running -> service_ended = true; at_destination = none }
  od
}

/* Looks at any time, so in every state. */
#define TWO_ACTIVE (at_source == running && at_destination == running)
#define BOTH_GONE (at_source == none && at_destination == none)
/* Only the loss of a host, or the service's own end after it was handed over, may leave no copy with its state. */
#define EXCUSED (source_host_lost || destination_host_lost || service_ended)
/* The source's host alone goes down in the window: the state lives on, unless somebody made the destination give up. */
#define LOST_ALONE (source_lost_in_window && !destination_host_lost && !service_ended && !destination_unfit && !cancelled && !surrendered)

active proctype Watch() {
  end: atomic { TWO_ACTIVE || (BOTH_GONE && !EXCUSED) || (LOST_ALONE && BOTH_GONE) -> assert(false) }
}
