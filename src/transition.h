/* transition.h: what becomes of a row */
#ifndef SYNCSTATE_TRANSITION_H
#define SYNCSTATE_TRANSITION_H

#include "policy.h"
#include "state.h"

typedef enum Transition
{
	TRANSITION_NONE,
	TRANSITION_START,
	TRANSITION_GIVE_UP,
	TRANSITION_COMPLETE,
	TRANSITION_FAIL,
	TRANSITION_RATE_LIMIT,
	TRANSITION_CLEAR_TOKEN,
	TRANSITION_RENEW,
	TRANSITION_CHECKPOINT,
	TRANSITION_RELEASE,
	TRANSITION_CONNECT,
	TRANSITION_PAUSE,
	TRANSITION_RESUME,
	TRANSITION_LIMIT,			/* by another row of its quota domain */
	TRANSITION_REVOKE,			/* by another row of its account */
	TRANSITION_LEAVE,			/* its resource is gone */
	TRANSITION_TRUST_PUSH,		/* by its push channel */
	NUM_TRANSITIONS,
} Transition;

/* What a run that was lost failed with. */
#define LEASE_EXPIRED_MESSAGE	"lease expired without a report"

typedef enum FailureKind
{
	FAILURE_TRANSIENT,
	FAILURE_PERMANENT,
	FAILURE_AUTH,
	NUM_FAILURE_KINDS,
} FailureKind;

/* For what a report holds; a failure is never a whole source's. */
typedef enum Scope
{
	SCOPE_ROW,
	SCOPE_ACCOUNT,
	SCOPE_SOURCE,
	NUM_LIMIT_SCOPES,
	NUM_FAILURE_SCOPES = SCOPE_SOURCE,
} Scope;

/* What a call says of a row; each transition looks at its own part. */
typedef struct Report
{
	SyncKey		key;
	bool		has_lease;
	int64		lease;
	int64		lease_time;		/* start, renew; 0: the policy's */
	bool		is_claim;		/* start */
	int64		items_synced;	/* complete */
	text	   *sync_token;		/* complete; NULL keeps */
	text	   *history_id;		/* complete; NULL keeps */
	TimestampTz updated_min;	/* complete; NO_TIME keeps */
	text	   *error_message;	/* fail */
	FailureKind kind;			/* fail */
	int64		retry_after;	/* rate limit; 0: the policy's wait */
	Scope		scope;			/* fail, rate limit */
	TimestampTz limited_until;	/* limit */
	text	   *page_token;		/* checkpoint; NULL keeps */
	int64		progress_done;	/* checkpoint; NO_COUNT keeps */
	int64		progress_total; /* checkpoint; NO_COUNT keeps */
	int64		delay;			/* release, resume */
	TimestampTz push_until;		/* trust push; NO_TIME: it ends */
	bool		push_begins;	/* trust push: until now nobody called back */
} Report;

/* Columns that a direct write names, whether or not it changes them. */
typedef struct Written
{
	bool		status;
	bool		items_synced;
	bool		sync_token;
	bool		history_id;
	bool		updated_min;
} Written;

extern const char *const syncstate_outcomes[NUM_OUTCOMES];
extern const char *const syncstate_failure_kinds[NUM_FAILURE_KINDS];
extern const char *const syncstate_scopes[NUM_LIMIT_SCOPES];

extern void syncstate_apply(Transition transition, SyncState *row,
							const Report *report, const SyncPolicy *policy,
							TimestampTz now);
extern void syncstate_tell_run(const SyncState *old, SyncState *row,
							   Outcome outcome, const Report *report,
							   const SyncPolicy *policy, TimestampTz now);
extern Transition syncstate_recognize(const SyncState *old,
									  const SyncState *row,
									  const Written *written,
									  TimestampTz now);
extern void syncstate_follow_write(const SyncState *old, SyncState *row,
								   const Written *written,
								   const SyncPolicy *policy, TimestampTz now);
extern void syncstate_fill_in(SyncState *row, const SyncPolicy *policy,
							  TimestampTz now);
extern bool syncstate_lease_is_held(const SyncState *row, int64 lease);
extern bool syncstate_lease_is_stale(const SyncState *row, int64 lease);
extern bool syncstate_lease_is_missing(Transition transition,
									   const SyncState *row,
									   const Report *report, TimestampTz now);
extern bool syncstate_grant_is_dead(const SyncState *row, const Report *report,
									const SyncPolicy *policy);
extern int64 syncstate_limit_wait(const Report *report,
								  const SyncPolicy *policy);

#endif
