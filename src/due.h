/* due.h: who is due */
#ifndef SYNCSTATE_DUE_H
#define SYNCSTATE_DUE_H

#include "policy.h"
#include "state.h"

/* Which rows a claim takes: those with a live cursor, the others, or both. */
typedef enum SyncKind
{
	KIND_ANY,
	KIND_INCREMENTAL,
	KIND_FULL,
	NUM_SYNC_KINDS,
} SyncKind;

extern const char *const syncstate_sync_kinds[NUM_SYNC_KINDS];

extern bool syncstate_is_of_kind(const SyncState *row,
								 const SyncPolicy *policy, SyncKind kind,
								 TimestampTz now);
extern TimestampTz syncstate_claimable_at(const SyncState *row,
										  const SyncPolicy *policy);
extern bool syncstate_would_park(const SyncState *row,
								 const SyncPolicy *policy, TimestampTz now);

#endif
