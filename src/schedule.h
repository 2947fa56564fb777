/* schedule.h: when: intervals, backoff, the lives of cursors, the ends of limits */
#ifndef SYNCSTATE_SCHEDULE_H
#define SYNCSTATE_SCHEDULE_H

#include "policy.h"
#include "state.h"

/*
 * How a cursor's life is planned.  A cursor counted from its last full sync is
 * given up between these two parts of its life, each row at its own part, so
 * that accounts connected together do not all need the expensive full sync in
 * one hour.  No interval sleeps past the first of them.
 */
#define TTL_LAST_VISIT		0.80
#define TTL_FULL_SYNC		0.85

/* Jitter shortens an interval by this part of itself on average. */
#define MEAN_JITTER			0.75

extern double syncstate_row_part(const SyncPolicy *policy, const SyncKey *key);
extern int64 syncstate_backoff(const SyncPolicy *policy, int32 n, double unit);
extern TimestampTz syncstate_first_due(const SyncPolicy *policy,
									   const SyncKey *key, TimestampTz now);
extern TimestampTz syncstate_next_due(const SyncPolicy *policy,
									  const SyncState *row, TimestampTz now);
extern TimestampTz syncstate_due_with_push(const SyncPolicy *policy,
										   const SyncState *row, TimestampTz now);
extern TimestampTz syncstate_settled_due(const SyncPolicy *policy,
										 const SyncState *row, TimestampTz now);
extern TimestampTz syncstate_settled_lease(const SyncPolicy *policy,
										   const SyncState *row, TimestampTz now);
extern TimestampTz syncstate_settled_limit(const SyncState *row,
										   TimestampTz now);
extern void syncstate_settle_times(SyncState *row, const SyncPolicy *policy,
								   TimestampTz now);
extern TimestampTz syncstate_lease_over(const SyncPolicy *policy,
										const SyncState *row);
extern TimestampTz syncstate_request_opens(const SyncPolicy *policy,
										   const SyncState *row);
extern TimestampTz syncstate_limit_end(const SyncPolicy *policy,
									   const SyncKey *key, int64 wait,
									   TimestampTz now);
extern TimestampTz syncstate_source_opens(const SyncPolicy *policy,
										  const SyncKey *key);
extern bool syncstate_has_cursor(const SyncState *row);
extern bool syncstate_begins_anew(const SyncPolicy *policy,
								  const SyncState *row, TimestampTz now);
extern bool syncstate_is_hopeless(const SyncPolicy *policy, int64 failures,
								  TimestampTz failing_since, TimestampTz now);
extern bool syncstate_is_failing(const SyncPolicy *policy, int64 failures,
								TimestampTz failing_since, TimestampTz now);
extern void syncstate_learn(SyncState *row, TimestampTz now);
extern double syncstate_change_rate(const SyncPolicy *policy,
									const SyncState *row);

#endif
