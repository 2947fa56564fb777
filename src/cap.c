/*
 * cap.c: how many syncs of a quota domain may run at a time
 *
 * The rows of one user, account and source share the provider's limit of
 * concurrent requests: max_in_flight.  A claim that wants to start a row of a
 * domain locks the domain until its transaction ends, and then counts what runs,
 * by the newest snapshot: an earlier claim of the domain has committed by then,
 * because it held the same lock.  Nobody waits: a domain that another claim has
 * locked counts as full.
 *
 * The count reads all rows of the domain.  When it finds no room, or takes long,
 * the session's claims leave the domain alone for REST times as long as the count
 * took: however many rows an account has, they cost the others at most a tenth of
 * the time.  Those who only look never make a claim leave a domain alone.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "access.h"
#include "cap.h"
#include "catalog.h"
#include "compat.h"
#include "syncstate.h"

/*
 * Domains share so many locks by their hash, so that claims of however many rows
 * leave half of the server's table of locks to others.
 */
#define NUM_LOCKS		Min(4096, max_locks_per_xact * MaxBackends / 2)

/* For how many times as long as it took a domain is left alone after a count. */
#define REST			9

/* A count that takes longer is long. */
#define LONG_COUNT		(10 * USECS_PER_SEC / 1000)

/* No domain is left alone for longer. */
#define MAX_REST		USECS_PER_MINUTE

/* So many columns of the primary key name a quota domain. */
#define DOMAIN_COLUMNS	3

/* A quota domain; without padding, since it is hashed. */
typedef struct DomainKey
{
	pg_uuid_t	user_id;
	Oid			source;
	char		account[256];	/* filled up with zeros */
} DomainKey;

/* What a call knows of a domain. */
typedef struct Domain
{
	DomainKey	key;
	int			room;			/* how many syncs may start */
} Domain;

/*
 * The domains that this session leaves alone, and until when by the real clock.
 * Domains share these places by their hash: a later one takes the place.
 */
#define NUM_RESTING		4096

static struct
{
	uint64		hash;
	TimestampTz until;
}			resting[NUM_RESTING];

StaticAssertDecl(MAX_ACCOUNT_BYTES < sizeof(((DomainKey *) 0)->account),
				 "an account must fit into the key of its domain");

/* Begins a call, which has the table open. */
void
syncstate_caps_open(Caps *caps, Relation rel, bool takes)
{
	caps->rel = rel;
	caps->takes = takes;
	caps->now = syncstate_clock_is_set() ? DT_NOEND : GetCurrentTimestamp();
	caps->context = CurrentMemoryContext;
	caps->domains = NULL;
}

/* Finds what the call knows of a domain; makes it if "action" says so. */
static Domain *
find_domain(Caps *caps, const DomainKey *key, HASHACTION action, bool *is_known)
{
	HASHCTL		ctl = {.keysize = sizeof(DomainKey), .entrysize = sizeof(Domain)};

	if (caps->domains == NULL)
	{
		ctl.hcxt = caps->context;
		caps->domains = hash_create("syncstate domains", 64, &ctl,
									HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	return hash_search(caps->domains, key, action, is_known);
}

static DomainKey
domain_key(Oid source, const pg_uuid_t *user_id, const text *account)
{
	DomainKey	key;

	MemSet(&key, 0, sizeof(key));
	key.user_id = *user_id;
	key.source = source;
	memcpy(key.account, VARDATA_ANY(account), VARSIZE_ANY_EXHDR(account));
	return key;
}

static uint64
domain_hash(const DomainKey *key)
{
	return hash_bytes_extended((const unsigned char *) key, sizeof(*key), 0);
}

/* Locks a domain until the transaction ends; false if somebody else has it. */
static bool
try_lock(const Caps *caps, const DomainKey *key)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, RelationGetRelid(caps->rel),
					   (uint32) (domain_hash(key) % NUM_LOCKS), 0);
	return LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

/* How many syncs of the domain of a row run, as far as "enough". */
static int
count_running(const Caps *caps, const SyncKey *key, TimestampTz now, int enough)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	Relation	pkey = index_open(syncstate_ids()->pkey_index, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(caps->rel, NULL);
	IndexScanDesc scan = syncstate_index_beginscan(caps->rel, pkey, snapshot,
												   DOMAIN_COLUMNS);
	ScanKeyData keys[NUM_KEY_COLUMNS];
	int			running = 0;

	syncstate_key_conditions(key, keys);
	index_rescan(scan, keys, DOMAIN_COLUMNS, NULL, 0);
	while (running < enough &&
		   index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;
		Datum		lease_expires_at = slot_getattr(slot,
													Anum_sync_state_lease_expires_at,
													&isnull);

		CHECK_FOR_INTERRUPTS();
		if (!isnull && DatumGetTimestampTz(lease_expires_at) > now)
			running++;
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(pkey, AccessShareLock);
	UnregisterSnapshot(snapshot);
	return running;
}

/* Whether the session leaves a domain alone; time that is moved by hand ends that. */
static bool
is_resting(const Caps *caps, const DomainKey *key)
{
	uint64		hash = domain_hash(key);
	TimestampTz until = resting[hash % NUM_RESTING].until;

	/* the clock may have been set back */
	return resting[hash % NUM_RESTING].hash == hash && until > caps->now &&
		until <= caps->now + MAX_REST;
}

static void
rest(const DomainKey *key, TimestampTz now, int64 took)
{
	uint64		hash = domain_hash(key);

	resting[hash % NUM_RESTING].hash = hash;
	resting[hash % NUM_RESTING].until = now + Min(REST * took, MAX_REST);
}

/* How many syncs of the domain of a row may start. */
static int
count_room(const Caps *caps, const SyncPolicy *policy, const SyncKey *key,
		   const DomainKey *domain)
{
	TimestampTz began = GetCurrentTimestamp();
	int64		took;
	int			room;

	if (caps->takes && !try_lock(caps, domain))
		return 0;
	room = policy->max_in_flight -
		count_running(caps, key, syncstate_now(), policy->max_in_flight);
	took = Max(GetCurrentTimestamp() - began, 0);
	if (caps->takes && (room == 0 || took > LONG_COUNT))
		rest(domain, began + took, took);
	return room;
}

/* Whether it is known that no sync of a domain may start; cheap. */
bool
syncstate_cap_is_full(Caps *caps, const SyncPolicy *policy,
					  const pg_uuid_t *user_id, const text *account)
{
	DomainKey	key;
	Domain	   *domain;

	if (policy->max_in_flight == 0)
		return false;
	key = domain_key(policy->source, user_id, account);
	domain = find_domain(caps, &key, HASH_FIND, NULL);
	return domain != NULL ? domain->room == 0 : is_resting(caps, &key);
}

/* Whether a sync of a row may start. */
bool
syncstate_cap_has_room(Caps *caps, const SyncPolicy *policy, const SyncKey *key)
{
	DomainKey	domain_is;
	Domain	   *domain;
	bool		is_known;

	if (policy->max_in_flight == 0)
		return true;
	domain_is = domain_key(policy->source, &key->user_id, key->account);
	domain = find_domain(caps, &domain_is, HASH_ENTER, &is_known);
	if (!is_known)
	{
		domain->room = 0;		/* also if the count fails */
		if (!is_resting(caps, &domain_is))
			domain->room = count_room(caps, policy, key, &domain_is);
	}
	return domain->room > 0;
}

/* Counts a sync of a row that has started. */
void
syncstate_cap_count(Caps *caps, const SyncPolicy *policy, const SyncKey *key)
{
	DomainKey	domain_is;
	Domain	   *domain;

	if (policy->max_in_flight == 0)
		return;
	domain_is = domain_key(policy->source, &key->user_id, key->account);
	domain = find_domain(caps, &domain_is, HASH_FIND, NULL);
	domain->room--;
}
