/* due.h: who is due */
#ifndef SYNCSTATE_DUE_H
#define SYNCSTATE_DUE_H

#include "policy.h"
#include "state.h"

extern TimestampTz syncstate_claimable_at(const SyncState *row,
										  const SyncPolicy *policy);
extern bool syncstate_would_park(const SyncState *row,
								 const SyncPolicy *policy, TimestampTz now);

#endif
