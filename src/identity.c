/*
 * identity.c: who is asking
 *
 * The same answer as Supabase's auth.uid(), without needing schema auth: the
 * setting of the one claim wins over the setting of all claims, an empty
 * setting counts as none (a transaction-local setting becomes '' and not
 * unset when the transaction ends), a malformed one is an error.
 *
 * Any session that may run SQL may SET these.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/uuid.h"


/* The claims that were read last, and the user in them. */
static char *known_claims = NULL;
static bool known_is_user;
static pg_uuid_t known_user;

PG_FUNCTION_INFO_V1(syncstate_current_user_id);

/* The value of a setting, or NULL where it is unset or empty. */
static const char *
setting(const char *name)
{
	const char *value = GetConfigOption(name, true, false);

	return (value == NULL || *value == '\0') ? NULL : value;
}

/* Reads the user in claims, and keeps it until other claims are read. */
static void
read_claims(const char *claims)
{
	Datum		json = DirectFunctionCall1(jsonb_in, CStringGetDatum(claims));
	Datum		sub;
	const char *subject = "";
	pg_uuid_t	user = {{0}};
	char	   *copy;

	/* ->> answers null by the call's result flag: no DirectFunctionCall */
	LOCAL_FCINFO(call, 2);

	InitFunctionCallInfoData(*call, NULL, 2, InvalidOid, NULL, NULL);
	call->args[0].value = json;
	call->args[0].isnull = false;
	call->args[1].value = PointerGetDatum(cstring_to_text("sub"));
	call->args[1].isnull = false;
	sub = jsonb_object_field_text(call);
	if (!call->isnull)
		subject = TextDatumGetCString(sub);

	/* all that may fail comes before anything that is kept is changed */
	if (*subject != '\0')
		user = *DatumGetUUIDP(DirectFunctionCall1(uuid_in,
												  CStringGetDatum(subject)));
	copy = MemoryContextStrdup(TopMemoryContext, claims);
	if (known_claims != NULL)
		pfree(known_claims);
	known_claims = copy;
	known_user = user;
	known_is_user = *subject != '\0';
}

/* syncstate_current_user_id() -> uuid: see doc/syncstate.md. */
Datum
syncstate_current_user_id(PG_FUNCTION_ARGS)
{
	const char *subject = setting("request.jwt.claim.sub");
	const char *claims;
	pg_uuid_t  *user;

	if (subject != NULL)
		PG_RETURN_DATUM(DirectFunctionCall1(uuid_in, CStringGetDatum(subject)));
	claims = setting("request.jwt.claims");
	if (claims == NULL)
		PG_RETURN_NULL();

	/* a statement asks more than once */
	if (known_claims == NULL || strcmp(claims, known_claims) != 0)
		read_claims(claims);
	if (!known_is_user)
		PG_RETURN_NULL();
	user = palloc(sizeof(pg_uuid_t));
	*user = known_user;
	PG_RETURN_UUID_P(user);
}
