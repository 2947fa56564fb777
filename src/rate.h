/* rate.h: the allowance of starts per minute of a source */
#ifndef SYNCSTATE_RATE_H
#define SYNCSTATE_RATE_H

#include "policy.h"

extern int	syncstate_rate_draw(const SyncPolicy *policy, int wanted,
								TimestampTz *drawn_at);
extern void syncstate_rate_give_back(const SyncPolicy *policy, int permits,
									 TimestampTz drawn_at);
extern void syncstate_rate_count(const SyncPolicy *policy);
extern TimestampTz syncstate_rate_next(const SyncPolicy *policy,
									   TimestampTz now);

#endif
