/* args.h: arguments of SQL functions */
#ifndef SYNCSTATE_ARGS_H
#define SYNCSTATE_ARGS_H

#include "fmgr.h"
#include "state.h"
#include "utils/array.h"
#include "utils/jsonb.h"

extern pg_uuid_t *syncstate_arg_user(FunctionCallInfo fcinfo, int arg);
extern text *syncstate_arg_account(FunctionCallInfo fcinfo, int arg);
extern SyncKey syncstate_arg_key(FunctionCallInfo fcinfo, int user_id,
								 int source, int resource, int account);
extern Oid	syncstate_arg_source(FunctionCallInfo fcinfo, int arg);
extern text *syncstate_arg_text(FunctionCallInfo fcinfo, int arg,
								const char *name, int max_bytes);
extern text *syncstate_arg_filled_text(FunctionCallInfo fcinfo, int arg,
									   const char *name, int max_bytes);
extern text *syncstate_arg_message(FunctionCallInfo fcinfo, int arg,
								   const char *name);
extern text *syncstate_arg_history_id(FunctionCallInfo fcinfo, int arg,
									  const char *name);
extern int	syncstate_arg_word(FunctionCallInfo fcinfo, int arg,
							   const char *name,
							   const char *const *words, int nwords);
extern int32 syncstate_arg_max_rows(FunctionCallInfo fcinfo, int arg,
									bool null_is_all);
extern int64 syncstate_arg_count(FunctionCallInfo fcinfo, int arg,
								 const char *name, bool null_is_none);
extern int64 syncstate_arg_lease(FunctionCallInfo fcinfo, int arg);
extern bool syncstate_arg_flag(FunctionCallInfo fcinfo, int arg,
							   const char *name);
extern TimestampTz syncstate_arg_time(FunctionCallInfo fcinfo, int arg,
									  const char *name);
extern int64 syncstate_arg_duration(FunctionCallInfo fcinfo, int arg,
									const char *name, int64 min, int64 max);
extern ArrayType *syncstate_arg_array(FunctionCallInfo fcinfo, int arg,
									  const char *name);
extern Jsonb *syncstate_arg_object(FunctionCallInfo fcinfo, int arg,
								   const char *name);

#endif
