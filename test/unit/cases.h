/* cases.h: what the state machine is asked, and how its answers are judged */
#ifndef CASES_H
#define CASES_H

#include "transition.h"

/* What must hold: PROPERTY(name, what is told). */
#define PROPERTIES(PROPERTY) \
	/* of all transitions */ \
	PROPERTY(LEGAL, "a transition leaves a legal row") \
	PROPERTY(COLUMNS, "a transition changes no columns but its own") \
	PROPERTY(NOTHING, "no transition changes updated_at alone") \
	PROPERTY(LEASE_NUMBER, "the fencing number is one more after a start, and else the same") \
	PROPERTY(LANES, "only its own transitions park a row, or take it back") \
	PROPERTY(CURSOR_KEPT, "only clear_sync_token and a planned full sync lose a cursor") \
	PROPERTY(CURSOR_FORWARD, "history_id and updated_min never go back") \
	PROPERTY(CURSOR_WHOLE, "with a cursor goes what belongs to it") \
	PROPERTY(FENCE_HELD, "during a run its lease is held, and no other") \
	PROPERTY(FENCE_STALE, "a lease is stale after its run, and not before") \
	PROPERTY(FENCE_CLAIMED, "a run that a claim handed out is ended without its lease only when that has run out") \
	PROPERTY(CLAIMABLE, "a row in the lanes can be claimed some day, and a parked one never") \
	PROPERTY(LIMITED, "a limit of its account holds a row back, whatever else would let it out, and does nothing else") \
	PROPERTY(TROUBLE, "a row is in trouble from a failure that parks it, or comes half as far, until it completes") \
	PROPERTY(TOLD_PARKED, "that a row is parked is told once, and what is gone by a word of its own") \
	PROPERTY(TOLD_FAILING, "that a row fails is told once in a run of failures, when it is half-way to being parked, and not of one that is") \
	PROPERTY(TOLD_RECOVERED, "that a row recovered is told with its first completion after that, and only then") \
	PROPERTY(TOLD_FIRST, "the first completion of a row is told, and no other") \
	PROPERTY(TOLD_LOST, "a cursor that the provider forgot is told of, and no other loss") \
	PROPERTY(TOLD_NOTHING, "nothing else of a row is told") \
	PROPERTY(RUN_TOLD, "a run is told once, when it ends, if the policy keeps it") \
	PROPERTY(RUN_OUTCOME, "a run ends as its worker says, or was lost when its lease ran out, or is revoked") \
	PROPERTY(RUN_FACTS, "what is told of a run is what the row had") \
	/* of each */ \
	PROPERTY(START, "a start takes the row, and the request and the error are gone") \
	PROPERTY(START_REQUEST, "a start remembers when the run was asked for, if it was") \
	PROPERTY(START_DUE, "a started row is due when its lease ends, or by backoff after it where it fails") \
	PROPERTY(START_CLAIM, "a claim says that the run takes its lease, and no other start does") \
	PROPERTY(START_FULL, "a full sync has the number of its first lease, and no other sync has one") \
	PROPERTY(START_FAILURE, "a lease that ran out counts as one failure, and no other start does") \
	PROPERTY(START_DEAD, "a start drops a dead cursor, and keeps a live one") \
	PROPERTY(START_RESYNC, "a start begins anew once the planned full sync of the source has come for the row") \
	PROPERTY(START_LIMIT, "a start forgets a limit that has passed, and no other") \
	PROPERTY(WOULD_PARK, "a row is given up instead of started when it would reach both limits") \
	PROPERTY(GIVE_UP, "a row that is given up has failed once more, and is parked") \
	PROPERTY(COMPLETE, "a completion ends the run and all its trouble") \
	PROPERTY(COMPLETE_CURSOR, "a completion takes the cursor that it is given, and its age is new") \
	PROPERTY(COMPLETE_FULL, "a completion of a run without a cursor was a full sync") \
	PROPERTY(COMPLETE_LEARNS, "a completion learns from what changed, and not from a full sync") \
	PROPERTY(COMPLETE_DUE, "a completed row is due after its interval, in the life of its cursor") \
	PROPERTY(COMPLETE_PUSH, "a completed row whose push channel is trusted waits for push_interval, or until the channel is trusted no longer") \
	PROPERTY(FAIL, "a failure ends the run, counts, and keeps its message") \
	PROPERTY(FAIL_PARKS, "a failure parks by kind auth, from auth_failures on, and at both limits") \
	PROPERTY(FAIL_GRANT, "the grant of an account has ended when a failure of kind auth parks a row, and only then") \
	PROPERTY(FAIL_WAITS, "a failure waits by backoff, or retry_cap by kinds permanent and auth") \
	PROPERTY(RATE_LIMIT, "a rate limit waits as long as it was told, up to a tenth more, and is not cut short") \
	PROPERTY(RATE_LIMIT_SCOPE, "a rate limit of scope account limits the row as the others, without a share of its own, and no other scope does") \
	PROPERTY(CLEAR_TOKEN, "a lost cursor counts; the third waits, and the tenth parks") \
	PROPERTY(CLEAR_TOKEN_RUN, "a run goes on without its cursor with the lease, and is revoked without") \
	PROPERTY(RENEW, "a renewal sets the end of the lease") \
	PROPERTY(CHECKPOINT, "a checkpoint takes what it is given, never shortens the lease, and forgets failures if it moves on") \
	PROPERTY(RELEASE, "a release leaves the row idle, with nothing counted, and due after the delay") \
	PROPERTY(PAUSE, "a pause parks the row") \
	PROPERTY(RESUME, "a resumed row is in the lanes, its failures and losses are forgotten, and no time is too far ahead") \
	PROPERTY(CONNECT, "a connected row is resumed and requested, but a pause stays") \
	PROPERTY(LIMIT, "a limit that another row met holds for this one, and no limit cuts another short") \
	PROPERTY(REVOKE, "a grant that ended parks the row, but one that is parked keeps its reason") \
	PROPERTY(LEAVE, "a row whose resource is gone is parked for that") \
	PROPERTY(TRUST_BEGINS, "a run during which push begins is followed by one more, and nothing else is requested") \
	PROPERTY(TRUST_PUSH, "a row that waits for its interval waits no longer than for one after its push channel is trusted, and others stay") \
	/* of direct writes */ \
	PROPERTY(WRITE_TOTAL, "a direct write is a transition that a client can make, or none") \
	PROPERTY(WRITE_LEGAL, "a direct write of legal values leaves a legal row") \
	PROPERTY(WRITE_NONSENSE, "a direct write of nonsense leaves a row for the CHECK to refuse") \
	PROPERTY(WRITE_KEEPS, "a direct write keeps what the client wrote") \
	PROPERTY(WRITE_NOTHING, "a direct write that changes nothing is no transition") \
	PROPERTY(WRITE_AGAIN, "what a direct write left is settled") \
	PROPERTY(WRITE_LEASE, "a direct write never lowers the fencing number, and a start raises it") \
	PROPERTY(WRITE_AGE, "a direct write of a cursor gives it a new age, unless it says which") \
	PROPERTY(WRITE_REVOKES, "a direct write that loses the cursor of a run revokes its lease") \
	PROPERTY(WRITE_START, "status = 'syncing' is a start") \
	PROPERTY(WRITE_TAKE_OVER, "status = 'syncing', named again, is a start when the lease ran out") \
	PROPERTY(WRITE_NUMBER, "a higher lease takes a run over") \
	PROPERTY(WRITE_COMPLETE, "status = 'idle' of a run is mark_sync_completed") \
	PROPERTY(WRITE_FAIL, "status = 'error' is mark_sync_failed") \
	PROPERTY(WRITE_LIMIT, "status = 'rate_limited' is mark_rate_limited, each time") \
	PROPERTY(WRITE_CLEAR, "no cursor is clear_sync_token without a lease") \
	PROPERTY(WRITE_PAUSE, "due_at = null is pause_sync") \
	PROPERTY(WRITE_RESUME, "parked_reason = null, due_at of a parked row, and status = 'idle' of a failed one are resume_sync") \
	PROPERTY(WRITE_BOTH, "an end of a run that takes its row back, or parks it, is two calls") \
	PROPERTY(WRITE_REQUEST, "requested_at is the time of the write, whatever was written, and a due time that is too far ahead is over") \
	/* of inserts */ \
	PROPERTY(INSERT_LEGAL, "an insert of legal values leaves a legal row") \
	PROPERTY(INSERT_STAYS, "an insert keeps what is there") \
	PROPERTY(INSERT_FILLS, "an insert fills in a due time, a lease, the name of a full sync, and an age of the cursor") \
	/* of what happens one after the other */ \
	PROPERTY(LIFE_FENCE, "no fencing number is handed out twice, and one holder at most has the row") \
	PROPERTY(LIFE_LEGAL, "a row is legal all its life")

typedef enum Property
{
#define ID(id, text) id,
	PROPERTIES(ID)
#undef ID
	NUM_PROPERTIES,
} Property;

/* A set of columns. */
#define COLUMN(name)	(UINT64CONST(1) << Anum_sync_state_##name)

#define CURSOR		(COLUMN(sync_token) | COLUMN(history_id) | COLUMN(updated_min))
#define PROGRESS	(COLUMN(page_token) | COLUMN(progress_done) | COLUMN(progress_total))
#define RUN			(COLUMN(status) | COLUMN(lease_expires_at) | \
					 COLUMN(lease_required) | COLUMN(run_requested_at) | \
					 COLUMN(error_message))
#define FAILURES	(COLUMN(failures) | COLUMN(failing_since))
#define PARKING		(COLUMN(due_at) | COLUMN(parked_reason))

/* The case at hand: what the state machine is given, and what it makes of it. */
extern SyncState old;
extern SyncState new;
extern Transition transition;
extern Report report;
extern SyncPolicy policy;
extern TimestampTz now;

/* The same of a direct write: what the client made of the row, and named. */
extern bool is_write;
extern SyncState written;
extern Written names;

/* What each transition may change, beside updated_at. */
extern const uint64 own_columns[NUM_TRANSITIONS];

/* cases.c */
extern void holds(Property property, bool condition);
extern bool tell(void);
extern void tell_case(void);

extern bool same_text(const text *a, const text *b);
extern bool is_text(const text *a, const char *b);
extern uint64 difference(const SyncState *a, const SyncState *b);
extern bool changes(uint64 columns);
extern bool is_legal(const SyncState *row);
extern bool has_cursor(const SyncState *row);
extern bool is_parked(const SyncState *row);
extern TimestampTz latest_due(const SyncState *row);
extern TimestampTz settled_limit(const SyncState *row);
extern bool is_possible(void);
extern const char *characters(const text *value);

extern int	pick(int n);
extern int	pick_column(void);
extern int64 pick_number(void);
extern TimestampTz pick_time(void);
extern TimestampTz pick_set_time(void);
extern Interval *pick_interval(void);
extern text *pick_untidy_history_id(void);
extern void set_column(SyncState *row, int column);
extern void draw_case(int number);
extern void draw_report(void);

#define PICK(array)		((array)[pick(lengthof(array))])

/* The last time that syncstate.clock may be. */
#define LAST_TIME		(MAX_TIME - 2 * MAX_DURATION - 1)

/* How many rows there are to draw. */
extern const int num_rows;

/* writes.c */
extern void try_write(int number);
extern void try_calls(int number);
extern void try_nonsense(int number);
extern void try_insert(int number);
extern void try_life(int number);

/* utils/builtins.h has it, and a function now() too */
extern text *cstring_to_text(const char *s);

#endif
