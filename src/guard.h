/* guard.h: direct writes of rows */
#ifndef SYNCSTATE_GUARD_H
#define SYNCSTATE_GUARD_H

#include "transition.h"

extern void syncstate_guard_write(const SyncState *old, SyncState *row,
								  const Written *written);

#endif
