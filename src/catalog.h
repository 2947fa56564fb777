/* catalog.h: OIDs of our objects */
#ifndef SYNCSTATE_CATALOG_H
#define SYNCSTATE_CATALOG_H

#include "columns.h"
#include "storage/lockdefs.h"
#include "utils/relcache.h"

/* Labels of the enum sync_status. */
typedef enum SyncStatus
{
#define LABEL(c_name, sql_name) SYNC_##c_name,
	SYNC_STATUSES(LABEL)
#undef LABEL
	NUM_STATUSES,
} SyncStatus;

/* OIDs, valid until the next invalidation. */
typedef struct CatalogIds
{
	Oid			state_rel;
	Oid			state_rowtype;
	Oid			pkey_index;
	Oid			due_index;
	Oid			requested_index;
	Oid			claim_function;
	Oid			guard_function;
	Oid			policy_rel;
	Oid			policy_rowtype;
	Oid			budget_rel;
	Oid			lane_rel;
	Oid			event_rel;
	Oid			event_rowtype;
	Oid			run_rel;
	Oid			run_rowtype;
	Oid			channel_rel;
	Oid			channel_rowtype;
	Oid			source_type;
	Oid			status_type;
	Oid			status_labels[NUM_STATUSES];
} CatalogIds;

extern const CatalogIds *syncstate_ids(void);
extern Relation syncstate_open_state(LOCKMODE lockmode);
extern SyncStatus syncstate_status_of(Oid label);

#endif
