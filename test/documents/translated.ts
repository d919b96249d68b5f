/** What `npm run check` says of the Korean documents: a warning each. At a release they fail. */
import { outdatedTranslations } from "../../src/build/translations.ts";

for (const line of outdatedTranslations()) {
  console.log(`warning: ${line}`);
}
