/* cap.h: how many syncs of a quota domain may run at a time */
#ifndef SYNCSTATE_CAP_H
#define SYNCSTATE_CAP_H

#include "policy.h"
#include "state.h"
#include "utils/hsearch.h"
#include "utils/relcache.h"

/* What one call knows of the quota domains that it has met. */
typedef struct Caps
{
	Relation	rel;
	bool		takes;			/* the call starts syncs, so it locks */
	TimestampTz now;			/* by the real clock; DT_NOEND: it was set by hand */
	MemoryContext context;
	HTAB	   *domains;		/* NULL: none yet */
} Caps;

extern void syncstate_caps_open(Caps *caps, Relation rel, bool takes);
extern bool syncstate_cap_is_full(Caps *caps, const SyncPolicy *policy,
								  const pg_uuid_t *user_id,
								  const text *account);
extern bool syncstate_cap_has_room(Caps *caps, const SyncPolicy *policy,
								   const SyncKey *key);
extern void syncstate_cap_count(Caps *caps, const SyncPolicy *policy,
								const SyncKey *key);

#endif
