/*-------------------------------------------------------------------------
 *
 * identity.c
 *		Who is asking
 *
 * The same answer as Supabase's auth.uid(), without needing schema auth: the
 * setting of the one claim wins over the setting of all claims, an empty
 * setting counts as none (a transaction-local setting becomes '' and not
 * unset when the transaction ends), a malformed one is an error.
 *
 * Any session may SET these: an identity is as good as who may run SQL.
 *
 * src/identity.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "syncstate.h"

/* The claims that were read last, and the user in them. */
static char *known_claims = NULL;
static bool known_is_user;
static pg_uuid_t known_user;

static void read_claims(const char *claims);
static const char *setting(const char *name);

PG_FUNCTION_INFO_V1(syncstate_current_user_id);

/*
 * syncstate_current_user_id() -> uuid
 *
 * The user that the session's JWT claims name, or null.
 *
 * Reads request.jwt.claim.sub, else "sub" in request.jwt.claims.
 *
 * Errors: 22P02 if the claims are not JSON or the subject is not a uuid.
 */
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

/* The value of a setting, or NULL where it is unset or empty. */
static const char *
setting(const char *name)
{
	const char *value = GetConfigOption(name, true, false);

	return (value == NULL || *value == '\0') ? NULL : value;
}
